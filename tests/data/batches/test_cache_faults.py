"""The node cache under altered and lost files, damaged shards, full disks, kills, and several builders at once."""

import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow.parquet as pq
import pytest

from scaling.data.batches import cachebuild, cachefolder
from scaling.data.batches.cache import map_split
from scaling.errors import NodeError, UserError
from tests.data.batches.caching import flip, folder_of, marks, stamps

ALL = {"spectra": [0, 1, 2], "params": [0, 1, 2]}


def check(mapped, training):
    assert np.array_equal(mapped.flux, training[0])
    assert np.array_equal(mapped.error, training[1])
    assert mapped.params(["row_id"])["row_id"].tolist() == list(range(300))


@pytest.mark.parametrize(
    "lost", ["spectra.f32", "marks/00002.json", "params/00001.parquet", "in-use", "marks", "params"]
)
def test_a_lost_file_is_made_again(shards, training, tmp_path, lost):
    map_split(shards, "train", 300, tmp_path).close()
    path = folder_of(tmp_path) / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    check(map_split(shards, "train", 300, tmp_path), training)
    assert marks(tmp_path) == ALL


def test_a_truncated_file_is_made_again(shards, training, tmp_path):
    map_split(shards, "train", 300, tmp_path)
    os.truncate(folder_of(tmp_path) / "spectra.f32", 100 * 8192)
    assert np.array_equal(map_split(shards, "train", 50, tmp_path).flux, training[0][:50])
    check(map_split(shards, "train", 300, tmp_path), training)


MAPPER = """
import hashlib, logging, sys
from pathlib import Path
from scaling.data.batches.cache import map_split
logging.basicConfig(stream=sys.stdout, format="%(message)s")
mapped = map_split(sys.argv[1], "train", 300, Path(sys.argv[2]))
print(hashlib.sha256(mapped.spectra.tobytes() + mapped.params(["row_id", "log_g"]).to_csv().encode()).hexdigest())
"""


def map_in_a_fresh_process(shards, cache):
    done = subprocess.run([sys.executable, "-c", MAPPER, shards, cache], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("file", "at"), [("spectra.f32", 200 * 8192 + 77), ("params/00001.parquet", 300), ("marks/00001.json", None)]
)
def test_an_altered_byte_is_noticed_and_healed(shards, training, tmp_path, caplog, file, at):
    """By the process that built it, and by another one. Any byte of a slice, and of the digests in a mark."""
    map_split(shards, "train", 300, tmp_path).close()
    (whole,) = map_in_a_fresh_process(shards, tmp_path)
    path = folder_of(tmp_path) / file
    at = path.read_bytes().index(b'"spectra": "') + 20 if at is None else at
    time.sleep(0.02)  # beyond the clock tick of the last write
    flip(path, at)
    with caplog.at_level(logging.WARNING):
        check(map_split(shards, "train", 300, tmp_path), training)
    said = caplog.messages
    flip(path, at)
    *lines, healed = map_in_a_fresh_process(shards, tmp_path)
    assert healed == whole
    for messages in (said, lines):
        # A digest that is no hexadecimal number any more is none, and its slice is filled as if for the first time.
        assert len(messages) == 1 or file.startswith("marks")
        assert all("shard 1 was altered (" in message for message in messages)
    assert map_in_a_fresh_process(shards, tmp_path) == [whole]


@pytest.mark.parametrize("garbage", [b"", b"\xff\x00", b"[]", b"{}", b'{"rows": "x", "digests": 3}', b"[" * 100_000])
def test_a_garbage_mark_is_no_mark(shards, training, tmp_path, garbage):
    map_split(shards, "train", 300, tmp_path).close()
    (folder_of(tmp_path) / "marks" / "00001.json").write_bytes(garbage)
    check(map_split(shards, "train", 300, tmp_path), training)
    assert marks(tmp_path) == ALL


def test_what_is_verified_is_read_once_in_a_process(shards, tmp_path, monkeypatch):
    read, preadv = [], os.preadv
    map_split(shards, "train", 300, tmp_path)
    monkeypatch.setattr(os, "preadv", lambda *arguments: (read.append(1), preadv(*arguments))[1])
    map_split(shards, "train", 300, tmp_path)
    assert not read
    cachebuild._verified.clear()
    map_split(shards, "train", 300, tmp_path)
    assert read


@pytest.mark.parametrize("damage", ["exchanged", "deleted", "cut short", "another table"])
def test_a_damaged_shard_is_named_and_the_others_stay(own_shards, training, tmp_path, damage):
    second = own_shards / "train" / "part-00001.parquet"
    if damage == "exchanged":
        shutil.copy(own_shards / "train" / "part-00000.parquet", second)
    elif damage == "deleted":
        second.unlink()
    elif damage == "cut short":
        os.truncate(second, second.stat().st_size // 2)
    else:
        pq.write_table(pq.read_table(second, columns=["row_id"]), second)
    cache = tmp_path / "cache"
    with pytest.raises(UserError, match=r"part-00001\.parquet") as raised:
        map_split(own_shards, "train", 300, cache)
    assert "\n" not in str(raised.value)
    assert marks(cache)["spectra"] in ([0], [0, 2])
    before = stamps(cache)
    assert np.array_equal(map_split(own_shards, "train", 128, cache).flux, training[0][:128])
    assert stamps(cache) == before


def test_a_disk_without_room_is_refused_at_once(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(cachefolder.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1000, 999, 1))
    with pytest.raises(NodeError, match=r"1 bytes is free: set SCALING_CACHE to a folder on a larger disk"):
        map_split(shards, "train", 1, tmp_path)
    assert not list(tmp_path.rglob("*.f32"))


def test_a_disk_that_fills_while_building_leaves_what_is_complete(shards, training, small_disk, monkeypatch):
    """128 rows take 1 MB, and 300 rows 2.4 MB; another writer has taken 1.5 MB since the check."""
    monkeypatch.setattr(cachebuild, "MAX_THREADS", 1)
    disk = small_disk(3 * 2**20)
    (disk / "other").write_bytes(bytes(1_500_000))
    with monkeypatch.context() as patch:
        patch.setattr(cachefolder.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 0, 10**9))
        with pytest.raises(NodeError, match=r"the disk filled up meanwhile; what is complete stays.*SCALING_CACHE"):
            map_split(shards, "train", 300, disk / "cache")
    assert marks(disk / "cache") == {"spectra": [0], "params": [0]}
    (disk / "other").unlink()
    check(map_split(shards, "train", 300, disk / "cache"), training)


def test_threads_of_a_process_share_one_build(shards, training, tmp_path, monkeypatch):
    filled, fill = [], cachebuild.CacheBuild._fill_shard
    monkeypatch.setattr(
        cachebuild.CacheBuild, "_fill_shard", lambda self, *of: (filled.append(of[1]), fill(self, *of))[1]
    )
    with ThreadPoolExecutor(4) as pool:
        maps = list(pool.map(lambda _: map_split(shards, "train", 300, tmp_path), range(4)))
    assert sorted(filled) == [0, 1, 2]
    for mapped in maps:
        check(mapped, training)


BUILDER = """
import sys, time
from pathlib import Path
from scaling.data.batches import cachebuild
from scaling.data.batches.cache import map_split
pause = float(sys.argv[3])
cachebuild.MAX_THREADS = 1
fill = cachebuild.CacheBuild._fill_shard
def slow(self, file, shard, names):
    print("shard", shard, flush=True)
    if shard == 1:
        time.sleep(pause)
    fill(self, file, shard, names)
cachebuild.CacheBuild._fill_shard = slow
print("sum", map_split(sys.argv[1], "train", 300, Path(sys.argv[2])).flux.sum(dtype="f8"), flush=True)
"""


def start_builder(shards, cache, pause):
    command = [sys.executable, "-c", BUILDER, str(shards), str(cache), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_processes_build_one_copy(shards, training, tmp_path):
    builders = [start_builder(shards, tmp_path, 0.5) for _ in range(2)]
    said = [builder.communicate(timeout=200)[0].split("\n") for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0]
    lines = sorted(line for lines in said for line in lines if line.startswith("shard"))
    assert lines == ["shard 0", "shard 1", "shard 2"]
    assert said[0][-2] == said[1][-2] == f"sum {training[0].sum(dtype='f8')}"


def test_a_killed_build_continues_without_doing_a_marked_shard_again(shards, training, tmp_path, monkeypatch):
    builder = start_builder(shards, tmp_path, 200)
    assert [builder.stdout.readline() for _ in range(2)] == ["shard 0\n", "shard 1\n"]
    os.kill(builder.pid, signal.SIGKILL)
    builder.wait()
    builder.stdout.close()
    assert marks(tmp_path) == {"spectra": [0], "params": [0]}
    filled, fill = [], cachebuild.CacheBuild._fill_shard
    monkeypatch.setattr(
        cachebuild.CacheBuild, "_fill_shard", lambda self, *of: (filled.append(of[1]), fill(self, *of))[1]
    )
    check(map_split(shards, "train", 300, tmp_path), training)
    assert sorted(filled) == [1, 2]


@pytest.mark.parametrize("planted", ["lock", "split", "in-use", "spectra.f32", "marks", "params", "marks/00001.json"])
def test_a_planted_link_is_refused_and_what_it_points_to_is_left_alone(shards, tmp_path, planted):
    cache, elsewhere = tmp_path / "cache", tmp_path / "elsewhere"
    map_split(shards, "train", 128, cache).close()
    folder = folder_of(cache)
    path = {"lock": cache / "lock", "split": folder}.get(planted, folder / planted)
    if path.is_dir():
        shutil.rmtree(path)
        elsewhere.mkdir()
    else:
        path.unlink(missing_ok=True)
        elsewhere.write_bytes(b"precious")
    path.symlink_to(elsewhere)
    if planted == "marks/00001.json":  # replaced: nothing is read or written through it
        assert len(map_split(shards, "train", 300, cache).flux) == 300
    else:
        with pytest.raises(UserError, match=f"{re.escape(str(path))}: must be a real") as raised:
            map_split(shards, "train", 300, cache)
        assert "\n" not in str(raised.value)
    assert list(elsewhere.iterdir()) == [] if elsewhere.is_dir() else elsewhere.read_bytes() == b"precious"


def test_a_root_that_others_may_write_to_or_that_is_a_link_is_refused(shards, tmp_path):
    shared, link = tmp_path / "shared", tmp_path / "link"
    shared.mkdir()
    shared.chmod(0o777)
    link.symlink_to(tmp_path)
    for root in (shared, link):
        with pytest.raises(NodeError, match="must be a real folder of yours"):
            map_split(shards, "train", 1, root)
    assert list(shared.iterdir()) == []
