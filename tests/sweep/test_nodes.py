import os
from pathlib import Path

import pytest

from scaling.data.shards.manifest import MANIFEST, Manifest
from scaling.errors import UserError
from scaling.study.declaration import Data, DataRules, Placement, Sources
from scaling.sweep.code import code_hash
from scaling.sweep.health import look_around
from scaling.sweep.nodes import Node, Nodes, check_placements, choose_access
from tests.study.example import example_study

ROOM = 10**12


def node(**changes):
    return Node(**({"id": "1a", "host": "a", "cpus": 2.0, "gpus": 0.0, "room": ROOM} | changes))


def study_over(shards, **data):
    source = Sources(shards=shards, train=(Path("a.h5"),), val=Path("b.h5"), test=Path("c.h5"))
    return example_study(
        data=Data(**({"source": source, "num_spectra": (64, 300), "rules": DataRules(noise="fixed")} | data))
    )


def test_a_worker_does_not_span_nodes():
    study = example_study(placements=(Placement(cpus=2),))
    check_placements(study, [node()])
    with pytest.raises(UserError, match=r"cell w0004-d00000128-s1 needs 1 x 2 CPU; the cluster has 2 nodes of 1 CPU"):
        check_placements(study, [node(cpus=1.0), node(cpus=1.0, id="1b")])


@pytest.mark.parametrize(("gpus", "nodes", "fits"), [(1, 2, True), (1, 1, False), (0.25, 1, True), (2, 2, False)])
def test_workers_may_lie_on_several_nodes(gpus, nodes, fits):
    study = example_study(placements=(Placement(gpus=gpus, workers=2 if gpus >= 1 else 1),))
    there = [node(gpus=1.0, id=f"{number}") for number in range(nodes)]
    if fits:
        check_placements(study, there)
    else:
        with pytest.raises(UserError, match="GPU"):
            check_placements(study, there)


def test_an_elastic_trial_needs_room_for_its_fewest_workers():
    study = example_study(placements=(Placement(workers=4, min_workers=2),))
    check_placements(study, [node()])
    with pytest.raises(UserError, match="needs 2 x 1 CPU"):
        check_placements(study, [node(cpus=1.0)])


def test_spectra_are_streamed_where_the_smallest_disk_cannot_hold_them(shards):
    manifest = Manifest.load(shards)
    row = 4 * manifest.pixels
    evaluation = 2 * (64 + 96) * row
    study = study_over(shards)
    assert choose_access(study, manifest, [node()], None) == {64: "auto", 300: "auto"}
    room = evaluation + 128 * row  # the shard of the first 64 spectra has 128
    small = [node(), node(host="b", room=room)]
    assert choose_access(study, manifest, small, None) == {64: "auto", 300: "streamed"}
    assert choose_access(study, manifest, [node()], room) == {64: "auto", 300: "streamed"}
    fresh = study_over(shards, rules=DataRules(noise="fresh"))
    assert choose_access(fresh, manifest, small, None) == {64: "streamed", 300: "streamed"}
    assert choose_access(study_over(shards, access="streamed"), manifest, [node()], None) == {
        64: "streamed",
        300: "streamed",
    }


@pytest.mark.parametrize(("access", "spare"), [("mapped", 0), ("resident", 0), ("auto", -1), ("streamed", -1)])
def test_what_cannot_be_held_is_refused(shards, access, spare):
    manifest = Manifest.load(shards)
    study = study_over(shards, access=access)
    room = 2 * (64 + 96) * 4 * manifest.pixels + spare
    with pytest.raises(UserError, match=r"node b: memory maps of .* for (64|300) spectra"):
        choose_access(study, manifest, [node(), node(host="b", room=room)], None)


def test_a_folder_that_is_evicted_meanwhile_is_no_problem_of_a_node(tmp_path, monkeypatch):
    shards, cache, scandir = tmp_path / "shards", tmp_path / "cache", os.scandir
    shards.mkdir()
    (shards / MANIFEST).touch()
    cache.mkdir(mode=0o700)
    for name in ("kept", "evicted"):
        (cache / name).mkdir()
        (cache / name / "spectra.f32").write_bytes(b"1" * 8192)

    def evicting(path):
        if str(path) == str(cache / "evicted"):
            (cache / "evicted").rename(tmp_path / "evicted")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", evicting)
    _, room, problem = look_around(shards, cache, code_hash())
    assert problem == ""
    assert room > 10**6
    assert not (cache / "evicted").exists()


@pytest.mark.ray
def test_every_node_is_asked(shards, tmp_path, ray_cluster):
    said = []

    def nodes(shards, cache):
        return Nodes(shards, cache, said.append, gpus_needed=False, code=code_hash())

    (found,) = nodes(shards, tmp_path / "cache").wait_for_first()
    assert (found.cpus, found.gpus) == (ray_cluster["CPU"], ray_cluster.get("GPU", 0.0))
    assert found.room > 10**6
    with pytest.raises(UserError, match=r"no node can take part: node .*manifest\.json is not there"):
        nodes(tmp_path, tmp_path / "cache").wait_for_first()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot hold memory maps"):
        nodes(shards, tmp_path / "file" / "cache").wait_for_first()
    assert said == [], "the error says it"
