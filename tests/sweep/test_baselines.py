"""Baselines as tasks beside the trials: their rows, what is lost, what fails, and which CPUs they take."""

import dataclasses
from types import SimpleNamespace

import pytest

from analysis.points.trials import best_trials
from scaling.errors import UserError
from scaling.results import to_table
from scaling.study.declaration import Data, DataRules, LightGBM, Ridge, Simulation
from scaling.study.store import Store, StudyFolder
from scaling.sweep.baselines import BaselineTask
from scaling.sweep.limits import ATTEMPTS
from scaling.sweep.nodes import check_placements
from scaling.sweep.run import collect
from scaling.sweep.sweep import Sweep
from scaling.sweep.trial import Trial
from tests.study.example import example_row, example_study
from tests.sweep.test_search import World

TREES = LightGBM(trees=5)


def study_of(**rules):
    source = Simulation(train=512, val=64, test=64, pixels=1024, seed=3)
    data = Data(source=source, num_spectra=(128, 256), rules=DataRules(**({"noise": "fixed"} | rules)))
    return example_study(data=data, baselines=(Ridge(), TREES))


@pytest.fixture
def sweep(shards, cache_root, tmp_path):
    study = study_of()
    return Sweep.prepare(study, StudyFolder(Store(str(tmp_path)), study.name), shards, cache_root)


def test_rows_stand_beside_the_trials_and_are_not_made_twice(sweep, monkeypatch):
    ridge, *trees = sweep.left()[1]
    assert [list(task.fingerprints) for task in (ridge, *trees)] == [[128, 256], [256], [128]]
    rows = ridge.run()
    assert [(row.family, row.rung, row.num_spectra, row.status) for row in rows] == [
        ("ridge", "ridge", 128, "done"),
        ("ridge", "ridge", 256, "done"),
    ]
    assert all(row.eval_pin == sweep.eval_pin and row.num_test == 96 and row.test_mae_sem_dex > 0 for row in rows)
    assert rows[0].test_mae_z == pytest.approx(rows[0].test_mae_dex / rows[0].label_std)
    assert [len(task.fingerprints) for task in sweep.left()[1]] == [1, 1]
    monkeypatch.setattr("scaling.sweep.baselines.fit_ridge", None)
    assert [row.to_json() for row in ridge.run()] == [row.to_json() for row in rows]
    for task in trees:
        rows += task.run()
    assert not sweep.left()[1]
    mine = example_row(fingerprint=sweep.fingerprint(sweep.study.cells()[0]), eval_pin=sweep.eval_pin)
    sweep.folder.trial(mine.trial).write_row(mine)
    table = best_trials(to_table(collect(sweep.study, sweep.folder)).to_pandas())
    assert table.cells.groupby("family").size().to_dict() == {"lightgbm": 2, "ridge": 2, "specvit": 1}
    assert table.warnings == []


def test_what_has_no_row_is_fitted_to_the_same_result(sweep):
    whole = sweep.left()[1][0].run()
    sweep.folder.trial(whole[1].trial).delete_row()
    again = sweep.left()[1][0]
    assert list(again.fingerprints) == [256]
    found = again.run()[0]
    assert (found.test_mae_dex, found.weight_decay) == (whole[1].test_mae_dex, whole[1].weight_decay)


def test_another_setting_is_another_result_and_another_number_of_cpus_is_not(sweep):
    cell = sweep.study.baseline_cells()[-1]
    assert cell.family == "lightgbm"

    def fingerprint(**changes):
        changed = (Ridge(), dataclasses.replace(TREES, **changes))
        return dataclasses.replace(sweep.study, baselines=changed).fingerprint(cell, "data")

    assert fingerprint(cpus=7) == fingerprint()
    assert fingerprint(leaves=7) != fingerprint()


def test_of_several_labels_and_of_a_classification(shards, cache_root, tmp_path):
    for rules, column in (({"other_labels": ("T_eff",)}, "test_mae_dex"), ({"boundary": 3.0}, "test_error_rate")):
        study = dataclasses.replace(study_of(**rules), name=column)
        sweep = Sweep.prepare(study, StudyFolder(Store(str(tmp_path)), column), shards, cache_root)
        rows = [row for task in sweep.left()[1] for row in task.run()]
        assert len(rows) == 4
        assert all(0 < getattr(row, column) < 1.2 for row in rows)
        assert all(("T_eff" in row.other_labels) == ("other_labels" in rules) for row in rows)


@pytest.fixture
def world(sweep, tmp_path):
    return World(tmp_path, sweep.study, cpus=(1.0, 1.0), baselines=sweep.left()[1])


def test_they_start_where_trials_leave_cpus_free_and_the_sweep_ends_with_them(world):
    begun = []
    while (found := world.hand_out()) is not None:
        begun.append(found)
    assert all(isinstance(trial, Trial) for _, trial in begun)
    assert len(begun) == 4  # two that run, two that queue for their processes
    rows, family = [], []
    while world.search.live:
        name = next(iter(world.search.live))
        trial = world.search.live[name].trial
        if isinstance(trial, BaselineTask):
            family.append(trial.baseline.family)
            rows += (done := trial.run())
            world.finish(name, rows=[row.to_json() for row in done])
        else:
            world.finish(name)
        while isinstance(world.hand_out(), tuple):
            pass
    assert world.hand_out() == "FINISHED"
    assert family == ["ridge", "lightgbm", "lightgbm"]
    assert len(rows) == 4
    assert sum("spectra: val MAE" in line for line in world.lines) == 4


def begin(world):
    """End all trials; the first baseline that is handed out."""
    while isinstance(found := world.hand_out(), tuple) or world.search.live:
        if found is None:
            world.finish(next(iter(world.search.live)))
        elif isinstance(found[1], BaselineTask):
            return found
    raise AssertionError(found)


def test_a_lost_task_is_started_again_and_given_up_after_so_many_attempts(world, sweep):
    world.search.baselines.waiting = world.search.baselines.waiting[:1]
    for _ in range(ATTEMPTS):
        name, task = begin(world)
        world.lose(name)
    world.run()
    rows = [sweep.folder.trial(task.cell_of(size).trial(0)).read_row() for size in (128, 256)]
    assert [(row.status, "ended without a word" in row.error) for row in rows] == [("failed", True)] * 2
    assert any("started again" in line for line in world.lines)


def test_a_mistake_fails_at_once_and_a_bad_node_is_set_aside_and_a_full_store_stops(world, sweep):
    name, task = begin(world)
    world.finish(name, mistake="shard 3 is damaged")
    assert sweep.folder.trial(task.cell_of(128).trial(0)).read_row().error == "shard 3 is damaged"
    name, task = begin(world)
    world.finish(name, node="no room", node_id="")
    assert list(world.aside.values()) == ["no room"]
    name, _ = begin(world)
    world.finish(name, full="the store is full")
    assert world.search.stopped == "the store is full"


def test_what_no_node_can_hold_is_refused():
    study = dataclasses.replace(study_of(), baselines=(Ridge(cpus=4),))
    node = SimpleNamespace(cpus=2.0, gpus=0.0)
    with pytest.raises(UserError, match="baseline ridge needs 4 CPUs of one node, which has 2 at most"):
        check_placements(study, [node])
    with pytest.raises(UserError, match="give each family once"):
        dataclasses.replace(study, baselines=(Ridge(), Ridge(cpus=2)))
