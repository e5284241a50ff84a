"""Was the form right: lack of fit, held-out runs and the trends of residuals."""

import dataclasses

import numpy as np
import pytest

from analysis.answers.backtest import held_out_score
from analysis.answers.checks import lack_of_fit, residual_trends
from analysis.intervals.compare import compare
from analysis.points.table import Points
from benchmarks.coverage import STELLAR, TRUTHS, Case


def study(form="chinchilla", seed=0, **changes):
    case = Case(**({"name": "test", "form": form, "truth": TRUTHS[form]} | changes))
    return case.study(np.random.default_rng(seed))


def edge(points):
    return (points.N.max() == points.N) | (points.D.max() == points.D)


def lack(points, form="chinchilla"):
    return lack_of_fit(compare(points, [form]).law, points)


def test_lack_of_fit_needs_repeats():
    assert lack(study()) is None


def test_a_right_form_lacks_fit_as_often_as_chance_says():
    """p is uniform if the form is right, also where weights differ."""
    for scatter in ((0.02, 0.02), (0.01, 0.05)):
        chances = [lack(study(seed=seed, seeds=3, scatter=scatter)).p for seed in range(60)]
        assert np.mean(np.array(chances) < 0.2) == pytest.approx(0.2, abs=0.15)


def test_a_wrong_form_lacks_fit():
    found = lack(study("gamma", seeds=3, scatter=(0.01, 0.01)))
    assert found.p < 1e-4
    assert found.pure_error == pytest.approx(0.01, rel=0.3)
    assert (found.dof_lack, found.dof_pure) == (31, 72)


def test_forecasts_of_held_out_cells_cover_as_often_as_they_say():
    inside = total = 0
    for seed in range(20):
        points = study(seed=seed, scatter=(0.04, 0.04))
        held = edge(points)
        score = held_out_score(compare(points.take(~held), ["chinchilla"]), points.take(held))
        inside, total = inside + score.inside, total + int(held.sum())
    assert 0.84 <= inside / total <= 0.96


def test_the_measured_grids_are_forecast(grid):
    """At least half inside: the largest model is over-predicted on both, which the words must not hide."""
    found = compare(grid.points(~grid.held))
    score = held_out_score(found, grid.points(grid.held))
    assert score.inside >= len(score.table) / 2
    assert score.mean_abs_log_error < 0.25
    assert f"{score.inside} of the {grid.held.sum()} held-out runs" in score.words
    assert (score.table["low"] < score.table["high"]).all()


def test_a_failed_forecast_is_called_one():
    points = study(scatter=(0.01, 0.01))
    held = points.N.max() == points.N
    found = compare(points.take(~held), ["chinchilla"])
    wrong = dataclasses.replace(points.take(held), loss=points.loss[held] * 0.6)
    words = held_out_score(found, wrong).words
    assert "The forecast failed" in words
    assert "lower (better) than forecast" in words


def test_residuals_of_the_right_form_do_not_trend():
    chances = np.concatenate([residual_trends(compare(study(seed=seed), ["chinchilla"]))["p"] for seed in range(40)])
    assert np.mean(chances < 0.05) < 0.12


def test_a_bend_that_the_form_lacks_is_found():
    trends = residual_trends(compare(study("plateau"), ["chinchilla"])).set_index("axis")["p"]
    assert trends["log² D"] < 0.01
    assert set(trends.index) == {"log N", "log² N", "log D", "log² D", "log N · log D"}


def test_an_interaction_that_the_form_lacks_is_found():
    trends = residual_trends(compare(study("gamma"), ["chinchilla"])).set_index("axis")["p"]
    assert trends["log N · log D"] < 1e-3


def test_trends_of_a_curve_are_over_its_one_variable():
    x = np.geomspace(1e2, 1e5, 9)
    points = Points(N=np.ones(9), D=x, loss=STELLAR["E"] + 3 * x**-0.4 * np.exp(0.01 * np.cos(np.arange(9))))
    assert residual_trends(compare(points, ["m1"]))["axis"].tolist() == ["log D", "log² D"]
