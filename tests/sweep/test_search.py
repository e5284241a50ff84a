"""The searcher: whatever happens to trials, nodes and the store, every cell ends with its rows, or the sweep says why it stops."""

import dataclasses
import errno
import math
from types import SimpleNamespace

import pytest

from scaling.study.declaration import Placement, Search
from scaling.study.store import Store, StudyFolder
from scaling.sweep.baselines import Baselines
from scaling.sweep.journal import Journal
from scaling.sweep.limits import ALIKE, ATTEMPTS, BEGIN_SECONDS, SETTLE_SECONDS
from scaling.sweep.rates import Rates, best_row
from scaling.sweep.search import SweepSearch
from scaling.sweep.trial import Trial
from tests.study.example import example_row, example_study

STUDY = example_study(search=Search(trials=4), seeds=(1, 2))


def good_row(trial):
    error = 0.1 + 0.01 * math.log(trial.lr / (0.02 * 4 / trial.cell.width)) ** 2
    return example_row(
        cell=trial.cell.key, trial=trial.key, lr=trial.lr, seed=trial.cell.seed, val_mae_dex=error, test_mae_dex=error
    )


class World:
    """A cluster, a store and a clock for one searcher; what is said is kept."""

    def __init__(self, tmp_path, study=STUDY, cpus=(2.0,), rows=(), baselines=()):
        self.study, self.now, self.lines, self.count = study, 100.0, [], 0
        self.folder = StudyFolder(Store(str(tmp_path / "store")), study.name)
        self.offers = [SimpleNamespace(id=f"n{i}", host=f"n{i}", cpus=count, gpus=0.0) for i, count in enumerate(cpus)]
        self.nodes = SimpleNamespace(
            look=lambda: [node for node in self.offers if node.id not in self.aside],
            problem="",
            hosts=lambda ids: ", ".join(ids),
            pending=lambda: "",
            set_aside=lambda node, reason: self.aside.update({node: reason}),
            trial_finished=lambda: self.good.append(self.now),
        )
        self.aside, self.asked, self.good = {}, [], []
        self.rates = Rates(study, list(rows))
        progress = SimpleNamespace(
            say=self.lines.append,
            lost=lambda key, reason: self.lines.append(f"{key}: {reason}"),
            add=lambda row: None,
            started=lambda *args: None,
            measured=lambda *args: None,
        )
        self.search = SweepSearch(
            study,
            self.trial,
            self.rates,
            self.nodes,
            Journal(study, self.folder.journal, list(rows)),
            progress,
            self.asked.append,
            Baselines(list(baselines), self.lines.append),
            clock=lambda: self.now,
        )

    def trial(self, cell, number, lr, rival=None, nodes=()):
        return Trial(
            study=self.study,
            folder=self.folder,
            shards="",
            cache_root=None,
            cell=cell,
            number=number,
            lr=lr,
            access="auto",
            fingerprint="",
            eval_pin="",
            code_commit="",
            nodes=nodes,
            rival=rival.trial if rival else "",
        )

    def hand_out(self, start=True):
        """The next trial, or what the searcher says instead."""
        name = f"t{self.count}"
        config = self.search.suggest(name)
        if not isinstance(config, dict):
            return config
        self.count += 1
        if start and not self.search.live[name].queued:
            self.search.on_trial_start(name)
        return name, config["trial"]

    def finish(self, name, **result):
        trial = self.search.live[name].trial
        result = result or {"row": good_row(trial).to_json()}
        self.search.on_trial_result(name, result)
        self.search.on_trial_complete(name, result)

    def lose(self, name):
        self.search.on_trial_complete(name, None, error=True)
        self.now += SETTLE_SECONDS
        self.search._settle()

    def run(self):
        """Everything to its end, the newest first."""
        running = list(self.search.live)
        while (found := self.hand_out()) != "FINISHED":
            if found is not None:
                running.append(found[0])
            elif running:
                self.finish(running.pop())
            else:
                self.now += 1.0
            assert self.now < 1e5
        return self.rates


@pytest.fixture
def world(tmp_path, monkeypatch):
    def failed_row(trial, outcome, error, **_):
        return dataclasses.replace(
            good_row(trial), status="failed", error=error, val_mae_dex=math.nan, test_mae_dex=math.nan
        )

    monkeypatch.setattr("scaling.sweep.trial.trial_row", failed_row)  # the real one reads the shards
    # A row that never comes is waited for in the real store.
    monkeypatch.setattr(
        "scaling.study.store.TrialFolder.await_row", lambda folder, seconds: folder.read_row(), raising=False
    )
    return lambda **options: World(tmp_path, **options)


def rates_of(rates):
    return {row.trial: row.lr for rows in rates.rows.values() for row in rows.values()}


def test_a_sweep_ends_with_all_cells_done_and_only_so_many_run_at_once(world):
    here = world()
    handed = [here.hand_out() for _ in range(3)]
    assert [found is not None for found in handed] == [True, True, True]  # the third queues for a process
    assert here.hand_out() is None
    rates = here.run()
    assert not rates.remaining()
    assert all(best_row(rows) for rows in rates.rows.values())
    assert not here.search.stopped


def test_a_continued_sweep_tries_what_an_undisturbed_one_does(world, tmp_path):
    expected = rates_of(world().run())
    here = World(tmp_path / "other")
    for _ in range(5):
        if found := here.hand_out():
            here.finish(found[0])
    rows = [row for found in here.rates.rows.values() for row in found.values()]
    assert 0 < len(rows) < len(expected)
    assert rates_of(World(tmp_path / "again", rows=rows).run()) == expected


def test_a_trial_later_in_its_cell_has_a_rival(world):
    here, rivals = world(cpus=(1.0,)), {}
    while (found := here.hand_out()) != "FINISHED":
        if found is None:
            here.finish(next(iter(here.search.live)))
        else:
            rivals[found[1].key] = found[1].rival
    for key, rival in rivals.items():
        number = int(key[-2:])
        assert bool(rival) == (number > 0)
        assert rival in ("", key[:-2] + "00") or number > 2


def test_a_lost_trial_is_handed_out_again_and_fails_for_good_only_without_progress(world):
    here = world(cpus=(1.0,))
    _, first = here.hand_out()
    further = [(0.5, 1), (0.5, 2), (1.0, 1), *((1.0, 2 + count) for count in range(ATTEMPTS))]
    for share, step in further + [(1.0, 2)] * (ATTEMPTS - 1):  # the last attempts repeat what earlier ones did
        name, attempt = next(iter(here.search.live.items()))
        assert attempt.trial.key == first.key
        here.search.on_trial_result(name, {"step": step, "budget_share": share, "train_loss": 1.0})
        here.lose(name)
        here.hand_out()
    row = first.output.read_row()
    assert row.status == "failed"
    assert "ended without a word" in row.error


def test_a_row_that_is_there_is_taken_though_its_process_was_lost(world):
    here = world(cpus=(1.0,))
    name, trial = here.hand_out()
    trial.output.write_row(good_row(trial))
    here.lose(name)
    assert here.rates.rows[trial.cell][trial.number] == trial.output.read_row()
    assert here.hand_out()[1].key != trial.key


def test_an_error_of_a_node_writes_no_row_and_the_trial_goes_elsewhere(world):
    here = world(cpus=(1.0, 1.0))
    name, trial = here.hand_out()
    here.finish(name, node="its cache disk is full", node_id=trial.nodes[0])
    assert here.aside == {trial.nodes[0]: "its cache disk is full"}
    assert trial.output.read_row() is None
    again = here.hand_out()[1]
    assert (again.key, again.nodes != trial.nodes) == (trial.key, True)


def test_a_hiccup_of_the_store_loses_no_round(world, monkeypatch):
    here = world(cpus=(1.0,))
    name, trial = here.hand_out()
    fails = iter([OSError(errno.EIO, "no answer")])

    def await_row(folder, seconds):
        for error in fails:
            raise error
        return folder.read_row()

    monkeypatch.setattr("scaling.study.store.TrialFolder.await_row", await_row)
    here.search.on_trial_complete(name, None, error=True)
    assert "the store does not answer" in here.lines[-1]
    trial.output.write_row(good_row(trial))
    here.now += SETTLE_SECONDS
    here.hand_out()
    assert trial.number in here.rates.rows[trial.cell]


def test_trials_that_fail_alike_stop_the_sweep_with_the_reason(world):
    here = world(cpus=(1.0,))
    for _ in range(ALIKE):
        found = here.hand_out()
        here.finish(found[0], mistake="part-00000.parquet: damaged")
    assert here.hand_out() == "FINISHED"
    assert "part-00000.parquet: damaged" in here.search.stopped
    assert sum(row.status == "failed" for row in here.folder.rows()) == ALIKE
    assert not here.good  # a failure clears no node of suspicion


def test_a_full_store_stops_the_sweep_without_a_row(world):
    here = world(cpus=(2.0,))
    (first, _), (second, trial) = here.hand_out(), here.hand_out()
    here.finish(first, full="store: no room")
    assert here.hand_out() is None  # the other may end
    here.finish(second)
    assert here.hand_out() == "FINISHED"
    assert here.search.stopped == "store: no room"
    assert list(here.rates.rows[trial.cell]) == [trial.number]
    assert here.folder.rows() == []


def test_a_trial_that_gets_no_devices_is_stopped_and_handed_out_elsewhere(world):
    here = world(cpus=(1.0, 1.0))
    name, trial = here.hand_out(start=False)
    assert here.search.overdue() == []
    here.now += BEGIN_SECONDS + 1
    assert here.search.overdue() == [name]
    here.search.on_trial_complete(name)
    again = here.hand_out()[1]
    assert (again.key, again.nodes != trial.nodes) == (trial.key, True)


def test_a_large_trial_on_a_lost_node_is_handed_out_on_others(world):
    study = dataclasses.replace(STUDY, placements=(Placement(workers=2),))
    here = world(study=study, cpus=(1.0, 1.0, 1.0))
    name, trial = here.hand_out()
    here.search.on_trial_result(name, {})
    here.offers = [node for node in here.offers if node.id != trial.nodes[0]]
    assert here.search.overdue() == [name]
    here.search.on_trial_complete(name, {})
    again = here.hand_out()[1]
    assert again.key == trial.key
    assert trial.nodes[0] not in again.nodes
