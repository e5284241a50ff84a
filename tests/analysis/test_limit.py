"""The information limit bounds the floor of the laws, and says when a model is better than possible."""

import numpy as np
import pandas as pd
import pytest

from analysis.answers.forecast import prediction_table
from analysis.fitting.fit import fit
from analysis.intervals.compare import compare
from analysis.laws import CHINCHILLA, LAWS
from analysis.points.example import LAW, example_rows
from analysis.points.limit import LEVEL, Limit, law_floor
from analysis.points.trials import best_trials, law_cells, points_from_cells
from scaling.errors import UserError

BINS = pd.DataFrame([(2.0, 20.0, 0.05)], columns=["low", "high", "mae_dex"])


def limit(mae, label="log_g", sem=0.0):
    return Limit(
        label=label,
        eval_pin="example",
        mae_dex=mae,
        by_snr=BINS,
        assumes="nothing",
        mae_sem_dex=sem,
    )


@pytest.fixture
def cells():
    found = law_cells(best_trials(example_rows()).cells)
    return found[~found["held_out"].astype(bool)].reset_index(drop=True)


def test_the_bound_is_the_limit_less_the_errors_of_both(cells):
    errors = pd.Series([0.1, 0.2, 0.4])
    assert law_floor(limit(0.05), errors, errors * np.nan) == 0.05
    assert law_floor(limit(0.05), errors, 0.02 * errors) == pytest.approx(0.05 * (1 - LEVEL * 0.02))
    both = law_floor(limit(0.05, sem=0.05 * 0.015), errors, 0.02 * errors)
    assert both == pytest.approx(0.05 * (1 - LEVEL * 0.025))
    assert points_from_cells(cells, limit=limit(0.05)).floor == pytest.approx(0.05 * (1 - LEVEL * 0.008), rel=1e-9)
    assert points_from_cells(cells, "num_params", None, "val_mae_dex", limit(0.05)).floor == 0.0


def test_a_limit_that_does_not_bind_changes_no_fit(cells):
    free, bounded = (points_from_cells(cells, limit=known) for known in (None, limit(0.5 * LAW["E"])))
    assert bounded.floor > 0
    expected, found = (compare(points, ["chinchilla"]) for points in (free, bounded))
    assert found.law.parameters == pytest.approx(expected.law.parameters, rel=1e-6)
    assert found.law_intervals["E"] == pytest.approx(expected.law_intervals["E"], rel=1e-3)


def test_a_limit_that_binds_is_the_floor_and_no_forecast_falls_below_it(cells):
    points = points_from_cells(cells, limit=limit(1.08 * LAW["E"]))
    found = compare(points)
    assert "no_floor" not in found.fits
    assert all(fitted.parameters["E"] >= points.floor for fitted in found.usable.values())
    assert found.fits["chinchilla"].status == "bound_hit"
    assert "E is at the information limit" in found.fits["chinchilla"].message
    alone = compare(points, ["chinchilla"])
    assert alone.law_intervals["E"][0] == pytest.approx(points.floor)
    far = prediction_table(alone, 1e12, 1e12)
    assert not any("reaches zero" in word for word in far["flags"][0])
    assert far["value"][0] > points.floor


def test_refits_and_backtests_keep_the_bound(cells):
    points = points_from_cells(cells, limit=limit(1.2 * LAW["E"]))
    found = compare(points, ["chinchilla"], replicates=50)
    assert (found.bootstrap.draws["chinchilla"][:, 0] >= points.floor * (1 - 1e-12)).all()
    assert points.take(np.arange(len(points)) < 10).floor == points.floor


def test_a_bound_binds_one_parameter_of_one_law():
    law = CHINCHILLA.at_least("E", 0.07)
    assert (law.lower[0], law.lower[1:], law.upper) == (0.07, CHINCHILLA.lower[1:], CHINCHILLA.upper)
    assert LAWS["chinchilla"].lower[0] == 0.0
    assert CHINCHILLA.at_least("E", -1.0).lower == CHINCHILLA.lower


def test_a_model_better_than_possible_is_called_a_leak(cells):
    points = points_from_cells(cells, limit=limit(2 * cells["test_mae_dex"].min()))
    assert points.floor == 0.0
    assert "lies below the information limit" in points.warnings[-1]
    assert "have leaked into training" in points.warnings[-1]
    assert fit(CHINCHILLA, points).usable


def test_a_limit_of_other_spectra_is_refused(cells):
    with pytest.raises(UserError, match="information limit: of label T_eff"):
        points_from_cells(cells, limit=limit(0.05, label="T_eff"))
