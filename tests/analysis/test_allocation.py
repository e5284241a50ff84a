"""Compute-optimal paths, against closed forms and public references."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from analysis.answers.allocation import _optimum, compute_optimal, local_exponent, no_path
from analysis.intervals.compare import compare
from analysis.laws import LAWS
from analysis.points.cost import SIX_N_D, Cost, column_cost, study_cost
from tests.analysis.conftest import TRUTH, D, N
from tests.analysis.test_budget import made
from tests.analysis.test_fit import case, needs_cases

FORMS = ["chinchilla", "tied", "no_floor", "kaplan", "gamma", "broken", "ridge", "quadrature"]


@pytest.mark.parametrize("form", FORMS)
def test_no_other_split_of_the_compute_is_better(form):
    found = compare(made(form), [form], replicates=20)
    path = compute_optimal(found)
    for row in path.table.itertuples():
        product = np.log(row.C / 6)

        def loss(size, product=product, fitted=found.law):
            return float(fitted.predict(np.exp(size), np.exp(product - size)))

        best = minimize_scalar(loss, bounds=(0.0, product), method="bounded", options={"xatol": 1e-8})
        assert row.loss == pytest.approx(best.fun, rel=1e-6)
        assert np.log(row.N) == pytest.approx(best.x, abs=0.02)
        assert pytest.approx(row.C) == row.N * row.D * 6
        assert row.N_low <= row.N_high
        assert row.loss_low <= row.loss_high


def test_the_path_of_chinchilla_is_its_closed_form():
    found = compare(made("chinchilla"), ["chinchilla"], replicates=50)
    _, A, alpha, B, beta = found.law.theta
    path = compute_optimal(found)
    G = (alpha * A / (beta * B)) ** (1 / (alpha + beta))
    expected = G * (path.table["C"] / 6) ** (beta / (alpha + beta))
    assert path.table["N"].to_numpy() == pytest.approx(expected.to_numpy())
    assert path.exponent == pytest.approx(beta / (alpha + beta))
    assert path.interval[0] < path.exponent < path.interval[1]
    assert local_exponent(found, SIX_N_D, 1e4, 1e4) == pytest.approx(path.exponent)


def test_a_searched_path_has_the_slope_of_the_closed_one():
    """Without repeats, `data_constrained` is Chinchilla's form, but has no closed path."""
    law = LAWS["data_constrained"]
    theta = law.vector(TRUTH | {"r_D": 5.0, "r_N": 5.0})[None]
    size, _, exponent = _optimum(law, theta, np.log([1e7, 1e8]), 1.0)
    assert exponent[0] == pytest.approx(0.6 / 1.1, abs=1e-3)
    closed = (np.log(0.5 * 6 / (0.6 * 8)) + 0.6 * np.log(1e7)) / 1.1
    assert size[0, 0] == pytest.approx(closed, abs=5e-3)


def test_there_is_no_path_without_a_trade():
    found = compare(made("chinchilla"), ["chinchilla"], replicates=20)
    no_cost = Cost(flops_per_param_sample=float("nan"), words="compute does not depend on D")
    assert compute_optimal(found, no_cost) is None
    assert no_path(found, no_cost) == no_cost.words
    curve = compare(found.points.take(N[0] == N), ["m2"], replicates=20)
    assert compute_optimal(curve) is None
    assert "Only one of N and D" in no_path(curve, SIX_N_D)


def test_the_cost_of_a_study_comes_from_its_rows(make_rows):
    sizes = [(100, 1000), (200, 1000), (200, 4000)]
    cells = make_rows(
        {"num_params": n, "num_spectra": d, "samples_seen": 10 * d, "train_flops": 60.0 * n * d, "budget": "epochs"}
        for n, d in sizes
    )
    cost = study_cost(cells)
    assert (cost.flops_per_param_sample, cost.epochs, cost.per_cell) == pytest.approx((6, 10, 60))
    assert not study_cost(cells.assign(budget="samples")).defined
    assert "do not state" in study_cost(cells.assign(train_flops=float("nan"))).words
    assert column_cost(N, D, 7 * N * D).per_cell == pytest.approx(7)
    assert "varies by a factor of 2" in column_cost(N, D, N * D * np.linspace(1, 2, len(N))).words


@needs_cases
@pytest.mark.parametrize(("level", "low", "high"), [(0.8, 0.4914, 0.5428), (0.95, 0.4805, 0.5563)])
def test_the_exponent_of_the_chinchilla_points(level, low, high):
    found = compare(case("chinchilla_epoch.csv"), ["chinchilla"], objective="huber", replicates=1500, level=level)
    path = compute_optimal(found)
    assert path.exponent == pytest.approx(0.5139, abs=1e-4)
    assert path.interval == pytest.approx((low, high), abs=0.006)
