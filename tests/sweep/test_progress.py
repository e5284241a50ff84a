import pytest

from scaling.study.declaration import Placement
from scaling.sweep.progress import Progress, duration
from tests.study.example import example_row, example_study


def finished(study, cell, number, seconds):
    return example_row(
        cell=cell.key,
        trial=cell.trial(number),
        rung=f"w{cell.width}",
        num_spectra=cell.num_spectra,
        steps=8,
        train_flops=1e6 * cell.width,
        wall_seconds=seconds,
        val_mae_dex=0.1 * (1 + number),
        host=study.placement(cell).host,
    )


def test_the_line_counts_trials_and_cells_and_names_the_best_error():
    study = example_study()
    cells = study.cells()
    written = []
    progress = Progress(study, [], {"CPU": 2.0}, written.append)
    assert progress.line() == "trials 0/8 | cells 0/4"
    progress.add(finished(study, cells[0], 0, 4.0))
    progress.add(finished(study, cells[0], 1, 4.0))
    assert "trials 2/8 | cells 1/4 | best val MAE 0.100 dex" in written[-1]


def test_the_time_left_shares_the_cluster_and_learns_from_the_nearest_size():
    study = example_study()
    rows = [finished(study, cell, 0, 3.0) for cell in study.cells()]
    progress = Progress(study, rows, {"CPU": 2.0}, print)
    assert progress.seconds_left() == pytest.approx(4 * 3.0 / 2)


def test_a_two_worker_trial_takes_both_devices_and_its_own_time():
    study = example_study(placements=(Placement(), Placement(from_width=8, workers=2)))
    rows = [finished(study, cell, 0, 3.0 if cell.width == 4 else 20.0) for cell in study.cells()]
    assert Progress(study, rows, {"CPU": 2.0}, print).seconds_left() == pytest.approx(2 * 3.0 / 2 + 2 * 20.0)


@pytest.mark.parametrize(("seconds", "words"), [(40, "40 s"), (600, "10 min"), (9000, "2.5 h")])
def test_durations_are_said_as_people_say_them(seconds, words):
    assert duration(seconds) == words
