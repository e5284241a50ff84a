"""Selection, intervals, held-out scores and what they buy."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from analysis.compare import NoLawError, akaike_weights, compare, held_out_score, lack_of_fit
from analysis.frontier import error_budget, what_would_it_buy
from analysis.laws import CHINCHILLA, GAMMA
from analysis.table import Points
from scaling.errors import UserError

TRUTH = {"E": 0.09, "A": 33.0, "alpha": 0.75, "B": 18.0, "beta": 0.67}
N, D = (axis.ravel() for axis in np.meshgrid(800.0 * 4.0 ** np.arange(4), 512.0 * 2 ** np.arange(6), indexing="ij"))


def sampled(law, truth, scatter, seed, repeats=1):
    n, d = np.repeat(N, repeats), np.repeat(D, repeats)
    noise = np.random.default_rng(seed).normal(0, scatter, len(n))
    return Points(N=n, D=d, loss=law.predict(truth, n, d) * np.exp(noise))


def part(points, chosen):
    return Points(N=points.N[chosen], D=points.D[chosen], loss=points.loss[chosen])


def test_forecasts_of_held_out_cells_cover_as_often_as_they_say():
    inside = total = 0
    for seed in range(12):
        points = sampled(CHINCHILLA, TRUTH, 0.04, seed)
        held = (N.max() == points.N) | (D.max() == points.D)
        found = compare(part(points, ~held), ["chinchilla"], replicates=150, seed=seed)
        score = held_out_score(found, part(points, held))
        inside, total = inside + score.inside, total + held.sum()
    assert 0.82 <= inside / total <= 0.98


def test_the_measured_grids_are_forecast(grid):
    """At least half inside: the largest model is over-predicted on both, which the words must not hide."""
    found = compare(grid.points(~grid.held), replicates=150)
    score = held_out_score(found, grid.points(grid.held))
    assert score.inside >= len(score.table) / 2
    assert score.mean_abs_log_error < 0.2
    assert f"{score.inside} of the {grid.held.sum()} held-out runs" in score.words
    assert (score.table["low"] < score.table["predicted"]).all()
    assert (score.table["predicted"] < score.table["high"]).all()


def test_a_failed_forecast_is_called_one():
    points = sampled(CHINCHILLA, TRUTH, 0.01, 0)
    held = N.max() == points.N
    found = compare(part(points, ~held), ["chinchilla"], replicates=100)
    wrong = dataclasses.replace(part(points, held), loss=part(points, held).loss * 0.6)
    words = held_out_score(found, wrong).words
    assert "The forecast failed" in words
    assert "lower (better) than forecast" in words


def test_the_same_seed_gives_the_same_intervals():
    points = sampled(CHINCHILLA, TRUTH, 0.03, 1)
    first, second, other = (compare(points, ["chinchilla"], replicates=40, seed=seed) for seed in (3, 3, 4))
    pd.testing.assert_frame_equal(first.bootstrap.forecast([1e5], [1e5]), second.bootstrap.forecast([1e5], [1e5]))
    assert not first.bootstrap.forecast([1e5], [1e5]).equals(other.bootstrap.forecast([1e5], [1e5]))


def test_interacting_axes_select_gamma():
    truth = {"E": 0.05, "A": 3.5e3, "alpha": 1.3, "B": 3e3, "beta": 1.2, "gamma": 0.5}
    found = compare(sampled(GAMMA, truth, 0.01, 0), replicates=30)
    assert found.best == "gamma"
    assert found.weights["gamma"] > 0.95
    budget = error_budget(found, 1e4, 1e4)
    assert "only a guide" in budget.note


def test_weights_add_up_and_follow_the_score():
    weights = akaike_weights({"a": -10.0, "b": -8.0, "c": float("inf")})
    assert sum(weights.values()) == pytest.approx(1)
    assert weights["a"] / weights["b"] == pytest.approx(np.e)
    assert weights["c"] == 0


def test_forecasts_far_outside_are_flagged():
    found = compare(sampled(CHINCHILLA, TRUTH, 0.03, 2), ["chinchilla"], replicates=30)
    flags = found.bootstrap.forecast([N.max(), 4 * N.max(), 5 * N.max()], [D.max(), D.max(), D.min() / 8])["flags"]
    assert flags.tolist()[:2] == ["", ""]
    assert "N is 5x outside" in flags[2]
    assert "D is 8x outside" in flags[2]


def test_the_error_budget_adds_up_to_the_law():
    found = compare(sampled(CHINCHILLA, TRUTH, 0.02, 3), ["chinchilla"], replicates=60)
    budget = error_budget(found, N.max(), D.max())
    assert budget.table["value"].sum() == pytest.approx(float(found.law.predict(N.max(), D.max())))
    assert budget.table["share"].sum() == pytest.approx(1)
    assert (budget.table["low"] <= budget.table["high"]).all()


def test_more_of_both_buys_more_than_more_of_one():
    found = compare(sampled(CHINCHILLA, TRUTH, 0.02, 4), ["chinchilla"], replicates=60)
    gains = what_would_it_buy(found, N.max(), D.max()).set_index("scenario")["gain"]
    assert gains["as now"] == 0
    assert gains["4× both"] == pytest.approx(gains["4× data"] + gains["4× model"])


def test_lack_of_fit_needs_repeats_and_finds_a_wrong_form():
    once = compare(sampled(CHINCHILLA, TRUTH, 0.02, 5), ["chinchilla"], replicates=30)
    assert lack_of_fit(once) is None
    right = compare(sampled(CHINCHILLA, TRUTH, 0.02, 5, repeats=3), ["chinchilla"], replicates=30)
    assert lack_of_fit(right)["p"] > 0.01
    truth = {"E": 0.05, "A": 3.5e3, "alpha": 1.3, "B": 3e3, "beta": 1.2, "gamma": 0.5}
    wrong = compare(sampled(GAMMA, truth, 0.005, 5, repeats=3), ["chinchilla"], replicates=30)
    assert lack_of_fit(wrong)["p"] < 0.01


def test_repeats_widen_a_prediction_only_by_their_own_scatter():
    """With many repeats of a right law a single run scatters by its own noise: ±1.645·σ at 90 %."""
    found = compare(sampled(CHINCHILLA, TRUTH, 0.05, 6, repeats=8), ["chinchilla"], replicates=400)
    cast = found.bootstrap.forecast([3200.0], [2048.0]).iloc[0]
    assert np.log(cast["high"] / cast["low"]) == pytest.approx(2 * 1.645 * 0.05, rel=0.25)


def test_points_that_support_no_law_say_why():
    points = Points(N=N[:6], D=D[:6], loss=np.linspace(0.5, 0.3, 6))
    with pytest.raises(NoLawError, match="6 points support no law"):
        compare(points)
    with pytest.raises(UserError, match="form 'cubic' is unknown"):
        compare(points, ["cubic"])
