"""The scatter between seeds as a function of N and D, and the weights that follow from it."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from analysis.fitting.weights import run_weights, variance_model
from analysis.points.table import Points

N, D = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e3, 3e5, 6), np.geomspace(500.0, 1.5e5, 6), indexing="ij"))


def study(power, seeds, seed):
    """Runs whose standard deviation of log loss is 1 % times (N / smallest N)^power."""
    n, d = np.repeat(N, seeds), np.repeat(D, seeds)
    scatter = 0.01 * (n / n.min()) ** power
    return Points(N=n, D=d, loss=0.3 * np.exp(np.random.default_rng(seed).normal(0, scatter)))


def test_without_repeats_every_run_weighs_the_same():
    found = run_weights(study(0.3, 1, 0))
    assert (found.weights == 1).all()
    assert "No cell has repeats" in found.words


def test_constant_scatter_is_seldom_mistaken_for_a_slope():
    """Two slopes are tested at 5 % each."""
    flat = sum(run_weights(study(0.0, 2, seed)).model.constant for seed in range(100))
    assert flat >= 80


def test_growing_scatter_is_found_and_weighs_inversely():
    slopes = []
    for seed in range(30):
        points = study(0.3, 2, seed)
        found = run_weights(points)
        slopes.append(found.model.slopes[0])
        assert found.weights.mean() == pytest.approx(1)
        product = found.weights * found.model.relative(points.N, points.D)
        assert product == pytest.approx(np.full(len(points), product[0]))
        assert "N^" in found.words
    assert np.mean(slopes) == pytest.approx(0.6, abs=0.08)  # of the variance


def test_known_variances_are_recovered_exactly():
    variances = 1e-4 * N**0.5 / D**0.2
    found = variance_model(N, D, variances, np.full(len(N), 3.0))
    assert found.slopes == pytest.approx([0.5, -0.2], abs=1e-6)
    assert found.relative(N, D) / variances == pytest.approx(found.relative(N, D)[0] / variances[0], rel=1e-5)


def test_a_variance_is_not_extrapolated_without_end():
    found = variance_model(N, D, 1e-4 * N**0.5, np.full(len(N), 3.0))
    assert found.relative(1e9, 1e3) == pytest.approx(found.relative(4 * N.max(), 1e3))


@given(st.lists(st.floats(0, 1e-2), min_size=36, max_size=36), st.integers(1, 5))
@example([*[0.0] * 35, 5e-324], 1)
@settings(max_examples=40, deadline=None)
def test_any_variances_give_a_finite_positive_model(variances, dof):
    relative = variance_model(N, D, np.array(variances), np.full(36, float(dof))).relative(N, D)
    assert np.all(np.isfinite(relative) & (relative > 0))


def test_seeds_that_agree_exactly_weigh_the_same():
    points = Points(N=np.repeat(N, 2), D=np.repeat(D, 2), loss=np.repeat(N**-0.1, 2))
    assert (run_weights(points).weights == 1).all()
