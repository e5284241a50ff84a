"""Optuna's journal shows every trial as it is, whatever happened to the driver or to the file."""

import errno
import json
import math

import optuna
import pytest

from scaling.study.declaration import Search
from scaling.sweep.journal import Journal, sweep_page
from tests.study.example import example_row, example_study

STUDY = example_study(search=Search(trials=3))
CELLS = STUDY.cells()


def row(cell, number, status="done", **changes):
    val = 0.1 + 0.01 * number if status == "done" else math.nan
    values = {"cell": cell.key, "trial": cell.trial(number), "lr": 1e-3 * (1 + number), "status": status}
    return example_row(**(values | {"val_mae_dex": val} | changes))


def shown(path, name="example"):
    """What another process reads: trial → (state, value, learning rate)."""
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
    trials = optuna.load_study(study_name=name, storage=storage).get_trials()
    return [(t.user_attrs["trial"], t.state.name, t.value, t.params) for t in trials]


def states(path, name="example"):
    return [state for _, state, _, _ in shown(path, name)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal"


def test_states_are_true_at_every_moment_in_the_cells_study_and_the_sweeps(path):
    journal, first, last = Journal(STUDY, path, []), CELLS[0], CELLS[-1]
    assert states(path) == []
    for number in range(3):
        journal.running(first, number, 1e-3 * (1 + number))
    journal.running(last, 0, 1e-3)
    assert states(path) == ["RUNNING"] * 4
    journal.finished(first, 0, row(first, 0))
    journal.finished(first, 1, row(first, 1, "pruned"))
    journal.finished(first, 2, row(first, 2, "diverged"))
    journal.lost(last, 0)
    assert states(path) == ["COMPLETE", "PRUNED", "FAIL", "WAITING"]
    assert states(path, f"example/{first.key}") == ["COMPLETE", "PRUNED", "FAIL"]
    journal.running(last, 0, 1e-3)
    assert states(path) == ["COMPLETE", "PRUNED", "FAIL", "RUNNING"]
    name, _, value, params = shown(path)[0]
    assert (name, value) == (first.trial(0), row(first, 0).val_mae_dex)
    assert params == {"num_params": 813, "num_spectra": 128, "lr": 1e-3, "seed": 1}


def test_the_sweeps_study_has_a_trials_cost_and_is_named_by_its_metric(path):
    journal, cell = Journal(STUDY, path, []), CELLS[0]
    journal.running(cell, 0, 1e-3)
    journal.finished(cell, 0, row(cell, 0))
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
    study = optuna.load_study(study_name="example", storage=storage)
    attrs = study.get_trials()[0].user_attrs
    assert attrs == {
        "trial": cell.trial(0),
        "cell": cell.key,
        "number": 0,
        "test_error": 0.5,
        "seconds": 1.5,
        "mfu": 0.1,
    }
    assert study.metric_names == ["val_mae_dex"]
    assert sweep_page(path, "example") == "studies/0"
    assert sweep_page(path, "another") == ""


def test_what_a_killed_driver_left_running_waits_until_it_is_handed_out_again(path):
    cell = CELLS[0]
    killed = Journal(STUDY, path, [])
    for number in range(3):
        killed.running(cell, number, 1e-3 * (1 + number))
    again = Journal(STUDY, path, [row(cell, 0)])  # one had written its row
    assert states(path) == states(path, f"example/{cell.key}") == ["COMPLETE", "WAITING", "WAITING"]
    again.running(cell, 1, 2e-3)
    again.running(cell, 1, 2e-3)
    again.running(cell, 2, 5e-3)  # the search asks for another learning rate by now
    assert states(path) == ["COMPLETE", "RUNNING", "FAIL", "RUNNING"]
    again.close()
    assert states(path) == ["COMPLETE", "WAITING", "FAIL", "WAITING"]


def test_a_failed_trial_that_is_tried_again_is_shown_once_more(path):
    cell = CELLS[0]
    for _ in range(3):
        Journal(STUDY, path, [row(cell, 0, "failed")])
    assert states(path) == ["FAIL"]
    again = Journal(STUDY, path, [])
    again.running(cell, 0, 1e-3)
    again.finished(cell, 0, row(cell, 0))
    assert states(path) == ["FAIL", "COMPLETE"]


DAMAGE = {
    "torn": lambda content: content[:-20] + b"\n",
    "a torn end": lambda content: content[:-20],
    "binary": lambda content: b"\x00\xff\xfe" + content,
    "an unknown operation": lambda content: content + b'{"op_code": 99, "worker_id": "x"}\n',
    "a list": lambda content: content + b"[1]\n",
    "another object": lambda content: b'{"a": 1}\n',
    "a trial of no study": lambda content: content + json.dumps(
        {"op_code": 4, "worker_id": "x", "study_id": 0, "datetime_start": None, "state": 1, "value": None}
    ).encode() + b"\n",
    "a text for a state": lambda content: content.replace(b'"state":', b'"state":"no","was":'),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_journal_is_set_aside_and_rebuilt_from_the_rows(path, damage):
    rows = [row(cell, number) for cell in CELLS for number in range(3)]
    Journal(STUDY, path, rows)
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    journal = Journal(STUDY, path, rows)
    assert states(path) == ["COMPLETE"] * len(rows)
    assert [trial for trial, *_ in shown(path)] == sorted(each.trial for each in rows)
    assert path.with_name("journal.damaged").exists()
    journal.running(CELLS[0], 3, 1e-3)


def test_a_study_that_has_grown_shows_all_its_trials_with_the_same_ranges(path):
    Journal(STUDY, path, [row(CELLS[0], 0)])
    grown = example_study(widths=(4, 8, 16), seeds=(1, 2))
    journal = Journal(grown, path, [row(CELLS[0], 0)])
    journal.running(grown.cells()[-1], 0, 50.0)  # far outside: shown none the less
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
    old, new = optuna.load_study(study_name="example", storage=storage).get_trials()
    assert old.distributions["num_params"] == new.distributions["num_params"]
    assert new.params["lr"] == 50.0


def test_no_call_looks_through_finished_trials(path, monkeypatch):
    journal = Journal(STUDY, path, [row(cell, 0) for cell in CELLS])

    def scan(*arguments, **options):
        raise AssertionError("a scan of all trials")

    monkeypatch.setattr(optuna.storages.JournalStorage, "get_all_trials", scan)
    for cell in CELLS:
        journal.running(cell, 1, 2e-3)
        journal.lost(cell, 1)
        journal.running(cell, 1, 2e-3)
        journal.finished(cell, 1, row(cell, 1))


def test_a_journal_torn_under_a_running_sweep_ends_the_view_and_not_the_sweep(path, caplog):
    journal, cell = Journal(STUDY, path, []), CELLS[0]
    journal.running(cell, 0, 1e-3)
    path.write_bytes(path.read_bytes() + b"torn\n")
    journal.running(cell, 1, 2e-3)
    journal.finished(cell, 0, row(cell, 0))
    journal.lost(CELLS[-1], 0)
    assert [record.message for record in caplog.records if "next run rebuilds it" in record.message]
    Journal(STUDY, path, [row(cell, 0)])
    assert states(path) == ["COMPLETE"]


def test_a_disk_that_is_full_when_a_trial_of_a_new_cell_is_lost_ends_the_view_and_not_the_sweep(
    path, monkeypatch, caplog
):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    journal = Journal(STUDY, path, [])
    monkeypatch.setattr(journal.storage, "create_new_study", full)
    journal.lost(CELLS[0], 0)
    assert "No space left on device" in caplog.text
    assert journal.broken
