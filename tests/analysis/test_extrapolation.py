"""Forecasts by backtest: forms are weighed by how they extrapolate, and forecasts widen as their errors grew."""

import dataclasses

import numpy as np
import pytest

from analysis.answers.forecast import forecast, prediction_intervals
from analysis.fitting.extrapolation import PRIOR_DOF, PRIOR_SHARE, beyond, prior_growth, smallest
from analysis.intervals.compare import compare
from analysis.laws import LAWS
from analysis.points.table import Points
from benchmarks.coverage import TRUTHS
from tests.analysis.test_checks import study


def at(points, factor=4.0):
    return np.array([factor * points.N.max()]), np.array([factor * points.D.max()])


def test_runs_of_one_size_stay_together():
    size = np.array([1.0, 2.0, 2.0, 2.0, 3.0, 4.0])
    assert smallest(size, 0.5).tolist() == [True, True, True, True, False, False]
    assert smallest(size, 1 / 6).tolist() == [True, False, False, False, False, False]


def test_distance_is_the_largest_of_all_axes_in_decades_and_zero_inside():
    points = study()
    N, D = points.N.max(), points.D.max()
    near = beyond(
        points,
        np.array([N, 10 * N, N, 10 * N, points.N.min() / 100, 1.0 * N]),
        np.array([D, D, 100 * D, 10 * D, D, D / 2]),
    )
    assert near == pytest.approx([0, 1, 2, 2, 2, 0])
    seen = dataclasses.replace(points, S=points.D * 3)
    assert beyond(seen, np.array([N]), np.array([D]), np.array([3000 * D])) == pytest.approx([3])


def test_a_form_that_extrapolates_well_outweighs_one_that_does_not():
    found = compare(study("no_floor", seeds=2), ["no_floor", "plateau"]).extrapolation
    assert [split.fitted for split in found.splits] == [42, 52, 60]  # 0.7 and 0.8 of the runs end at the same size
    assert found.errors["no_floor"] < 0.8 * found.errors["plateau"]
    assert found.leading == "no_floor"
    assert found.weights["no_floor"] > 0.8
    assert sum(found.weights.values()) == pytest.approx(1)
    assert "how they forecast the larger runs from the 42, 52, 60 smallest by N·D" in found.words


def test_a_form_that_is_nearly_true_is_not_certain_because_cells_are_many():
    """Akaike's weights grow certain with every cell; those of forecasts do not."""
    found = compare(study("ridge"), ["kaplan", "chinchilla"])
    assert found.weights["kaplan"] > 0.97
    assert 0.7 < found.extrapolation.weights["kaplan"] < 0.95


def test_a_right_form_keeps_to_the_prior_and_a_wrong_one_grows():
    right = compare(study(seeds=2), ["chinchilla"]).extrapolation
    wrong = compare(study("broken", seeds=2), ["chinchilla"]).extrapolation
    assert right.growth < prior_growth(study(seeds=2))
    assert wrong.growth > 1.5 * prior_growth(study("broken", seeds=2))
    assert right.dof == wrong.dof == PRIOR_DOF + 2.0


def test_forecasts_of_a_wrong_form_cover_because_they_widen():
    """Chinchilla's form on a law that bends: the interval of AICc, which takes it for true, holds the truth far less often."""
    held = {"backtest": 0, "aicc": 0}
    for seed in range(20):
        points = study("broken", seed=seed)
        N, D = at(points)
        truth = LAWS["broken"].predict(TRUTHS["broken"], N, D)
        for weigh in held:
            curve = prediction_intervals(compare(points, ["chinchilla"], weigh=weigh), N, D)[0][0]
            held[weigh] += int(curve[0] <= truth[0] <= curve[1])
    assert held["backtest"] >= held["aicc"] + 5


def test_the_interval_grows_with_the_distance_and_not_inside():
    points = study(seeds=2)
    by_aicc, by_backtest = (compare(points, ["chinchilla"], weigh=weigh) for weigh in ("aicc", "backtest"))
    wider = []
    for factor in (1.0, 4.0, 40.0):
        narrow, wide = (
            np.diff(np.log(prediction_intervals(each, *at(points, factor))[0][0]))[0] for each in (by_aicc, by_backtest)
        )
        wider.append(wide / narrow)
    assert wider[0] == pytest.approx(1, abs=1e-6)
    assert 1 < wider[1] < wider[2]


def test_robust_fits_are_backtested_too():
    points = study("broken", seeds=2)
    found = compare(points, ["chinchilla"], objective="huber", replicates=50)
    assert found.extrapolation.growth > 1.5 * prior_growth(points)
    low, high = prediction_intervals(found, *at(points))[0][0]
    as_true = compare(points, ["chinchilla"], objective="huber", replicates=50, weigh="aicc")
    narrow_low, narrow_high = prediction_intervals(as_true, *at(points))[0][0]
    assert high / low > narrow_high / narrow_low


def test_runs_of_one_compute_have_a_prior_too():
    N = np.geomspace(1e6, 1e8, 9)
    points = Points(N=N, D=1e16 / N, loss=2 + np.abs(np.log10(N) - 7))
    assert prior_growth(points) == pytest.approx(PRIOR_SHARE * np.std(np.log(points.loss)) / np.std(np.log10(N)))
    assert np.isfinite(forecast(compare(points, ["chinchilla"]), 1e9, 1e8)["value"]).all()


def test_too_few_runs_take_the_prior_and_say_so():
    D = np.array([1e3, 1e4, 1e5, 1e6, 1e7])
    few = Points(N=np.ones(5), D=D, loss=0.1 + 3 * D**-0.4 * np.array([1.0, 1.02, 0.98, 1.0, 1.01]))
    found = compare(few, ["m1", "m2"])
    assert (found.extrapolation.splits, found.extrapolation.growth, found.extrapolation.dof) == (
        [],
        prior_growth(few),
        PRIOR_DOF,
    )
    assert found.extrapolation.weights == pytest.approx({form: found.weights[form] for form in found.usable})
    assert found.extrapolation.words.startswith("The runs are too few for a backtest")
    cast = forecast(found, *at(few))
    assert (cast["low"] < cast["value"]).all()
    assert (cast["value"] < cast["high"]).all()


def test_a_form_too_large_for_the_smaller_part_takes_no_part():
    points = study(seeds=1)
    few = points.take((np.unique(points.N)[3] >= points.N) & (np.unique(points.D)[2] >= points.D))
    found = compare(few)
    assert set(found.extrapolation.weights) < set(found.usable) or not found.extrapolation.splits
    assert np.isfinite(forecast(found, *at(few))["value"]).all()
