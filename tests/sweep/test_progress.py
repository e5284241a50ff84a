"""The lines and the table that say how far a sweep is, and the bound on the time left."""

import io
from collections import Counter

import pytest
from rich.console import Console

from scaling.console import duration
from scaling.study.declaration import Placement, Search
from scaling.study.store import Store, StudyFolder
from scaling.sweep import progress as module
from scaling.sweep.progress import Progress
from scaling.sweep.status import study_status
from tests.study.example import example_row, example_study


def finished(study, cell, number, seconds=4.0, **changes):
    values = {
        "cell": cell.key,
        "trial": cell.trial(number),
        "rung": f"w{cell.width}",
        "num_params": 100 * cell.width,
        "num_spectra": cell.num_spectra,
        "steps": 8,
        "train_flops": 1e6 * cell.width,
        "wall_seconds": seconds,
        "val_mae_dex": 0.1 * (1 + number),
        "test_mae_dex": 0.15,
        "host": study.placement(cell).host,
    }
    return example_row(**(values | changes))


def at_most(study, rows):
    """Trials that each cell can still take."""
    rows_of = Counter(row.cell for row in rows)
    left = [(cell, study.search.trials - rows_of[cell.key]) for cell in study.cells()]
    return [(cell, count) for cell, count in left if count > 0]


class Watched:
    """A progress whose rows and lines are kept."""

    def __init__(self, study, rows=(), cpus=2.0):
        self.study, self.rows, self.lines = study, list(rows), []
        self.progress = Progress(
            study,
            self.rows,
            self.lines.append,
            devices=lambda: {"CPU": cpus},
            remaining=lambda: at_most(study, self.rows),
        )

    def add(self, row):
        self.rows.append(row)
        self.progress.add(row)

    def table(self):
        console = Console(file=io.StringIO(), width=160)
        console.print(self.progress.table())
        return console.file.getvalue()


@pytest.fixture
def study():
    return example_study()


def test_the_line_counts_trials_and_cells_and_says_which_split_an_error_is_of(study):
    cells, watched = study.cells(), Watched(study)
    assert watched.progress.line() == "trials 0/8 | cells 0/4 | CPUs busy 0/2"
    watched.add(finished(study, cells[0], 0))
    watched.add(finished(study, cells[0], 1))
    assert "trials 2/8 | cells 1/4" in watched.lines[-1]
    assert f"best cell {cells[0].key}: val MAE 0.100 dex, test MAE 0.150 dex" in watched.lines[-1]
    assert f"{cells[0].trial(1)} lr 0.01: val MAE 0.200 dex, test MAE 0.150 dex in 4 s" in watched.lines[-1]
    watched.add(finished(study, cells[1], 0, status="diverged"))
    assert "DIVERGED" in watched.lines[-1]


def test_running_trials_are_shown_with_their_last_validation_error(study, monkeypatch):
    watched, (first, second, *_) = Watched(study), study.cells()
    for number in range(2):
        for cell in (first, second):
            watched.progress.started(cell.trial(number), cell, "node-1")
    watched.progress.started(study.cells()[2].trial(0), study.cells()[2], "node-2")
    watched.progress.measured(first.trial(0), {"step": 4, "val_mae_dex": 0.3, "lr": 1e-3})
    assert f"running {first.trial(0)} val 0.300 dex, {first.trial(1)} begins, " in watched.progress.line()
    assert "and 1 more" in watched.progress.line()
    assert "CPUs busy 5/2" in watched.progress.line()
    row = next(line for line in watched.table().splitlines() if line.startswith(first.trial(0)))
    assert row.split()[1:] == ["node-1", "0", "s", "4", "0.300", "dex"]
    assert len(watched.lines) == 1, "a log hears of a measurement once a minute"
    monkeypatch.setattr(module, "QUIET_SECONDS", 0.0)
    watched.progress.measured(first.trial(0), {"step": 8, "val_mae_dex": 0.2})
    assert "val 0.200 dex" in watched.lines[-1]
    watched.add(finished(study, first, 0))
    assert f"running {first.trial(0)}" not in watched.progress.line()


def test_a_lost_trial_is_one_line(study):
    watched, cell = Watched(study), study.cells()[0]
    watched.progress.started(cell.trial(0), cell, "node-1")
    watched.progress.lost(cell.trial(0), "its node was lost")
    assert watched.lines == [
        f"{cell.trial(0)}: lost on node-1 (its node was lost); it resumes from its last checkpoint"
    ]
    assert watched.progress.running == {}


def test_a_log_gets_lines_and_no_table(study, capsys):
    watched = Watched(study)
    with watched.progress:
        watched.add(finished(study, study.cells()[0], 0))
    assert len(watched.lines) == 1
    assert capsys.readouterr().out == ""


def test_a_terminal_gets_one_table_and_lines_only_for_what_is_wrong(study, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    watched, cell = Watched(study), study.cells()[0]
    with watched.progress:
        watched.progress.started(cell.trial(1), cell)
        watched.add(finished(study, cell, 0))
        watched.add(finished(study, cell, 1, status="failed", error="no such label"))
    assert watched.lines == [f"{cell.trial(1)} failed: no such label"]
    assert "cells 1/4" in capsys.readouterr().out


def test_the_time_left_shares_the_cluster_and_learns_from_the_nearest_size(study):
    rows = [finished(study, cell, 0, 3.0) for cell in study.cells()]
    assert Watched(study, rows).progress.seconds_left() == pytest.approx(4 * 3.0 / 2)
    assert Watched(study).progress.seconds_left() is None
    done = Watched(study, [finished(study, cell, number) for cell in study.cells() for number in range(2)])
    assert done.progress.seconds_left() == 0.0
    assert "left" not in done.progress.line()


def test_a_two_worker_trial_takes_both_devices_and_its_own_time():
    study = example_study(placements=(Placement(), Placement(from_width=8, workers=2)))
    rows = [finished(study, cell, 0, 3.0 if cell.width == 4 else 20.0) for cell in study.cells()]
    assert Watched(study, rows).progress.seconds_left() == pytest.approx(2 * 3.0 / 2 + 2 * 20.0)


def test_many_devices_wait_for_the_longest_chain_of_a_cell():
    study = example_study(search=Search(trials=5))
    rows = [finished(study, cell, 0, 2.0 if cell.num_spectra == 128 else 9.0) for cell in study.cells()]
    watched = Watched(study, rows, cpus=64.0)
    assert watched.progress.seconds_left() == pytest.approx(4 * 9.0)
    cell = study.cells()[-1]
    for number, step in ((1, 4), (2, 6)):  # side by side, half and three quarters done
        watched.progress.started(cell.trial(number), cell)
        watched.progress.measured(cell.trial(number), {"step": step, "val_mae_dex": 0.3})
    others = [finished(study, each, number, 2.0) for each in study.cells()[:-1] for number in range(1, 5)]
    watched.rows += others
    watched.progress.add(others[-1])
    assert watched.progress.seconds_left() == pytest.approx(9.0 / 2 + 2 * 9.0)


def test_a_line_costs_the_same_after_many_trials(study):
    watched = Watched(study, [finished(study, cell, n) for cell in study.cells() for n in range(500)])
    assert len(watched.progress.time_left.kinds) == 4


def test_the_store_alone_says_the_same(study, tmp_path):
    folder, cells = StudyFolder(Store(str(tmp_path)), study.name), study.cells()
    for number in range(2):
        folder.trial(cells[0].trial(number)).write_row(finished(study, cells[0], number))
    folder.trial(cells[1].trial(0)).write_progress("step,val_mae_dex\n4,0.5\n8,0.25\n", b"")
    folder.trial(cells[2].trial(0)).write_progress("step\n", b"")
    text, found = study_status(folder, study)
    assert "trials 2/8 | cells 1/4 | best cell w0004-d00000128-s1: val MAE 0.100 dex, test MAE 0.150 dex" in text
    assert "about 24 s of work left for one CPU" in text
    assert f"{cells[1].trial(0)}: begun, not finished (step 8, val MAE 0.250 dex)" in text
    assert f"{cells[2].trial(0)}: begun, not finished (its progress.csv cannot be read" in text
    assert found["best"] == {"cell": cells[0].key, "trial": cells[0].trial(0), "val_mae_dex": 0.1, "test_mae_dex": 0.15}
    assert (found["cells_done"], list(found["unfinished"])) == (1, [cells[1].trial(0), cells[2].trial(0)])


@pytest.mark.parametrize(("seconds", "words"), [(40, "40 s"), (600, "10 min"), (9000, "2.5 h")])
def test_durations_are_said_as_people_say_them(seconds, words):
    assert duration(seconds) == words
