"""Laws and their fits: derivatives, recovery of a known truth, and answers known from public data."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.fit import fit
from analysis.laws import CHINCHILLA, GAMMA, LAWS
from scaling.errors import UserError

CASES = Path(__file__).parents[3] / "shared" / "cases"
N, D = (axis.ravel() for axis in np.meshgrid([800.0, 2e3, 9e3, 3e4, 1.6e5], 512.0 * 2 ** np.arange(6), indexing="ij"))

exponents = st.floats(0.2, 1.2)
truths = st.fixed_dictionaries(
    {
        "E": st.floats(0.02, 0.2),
        "capacity": st.floats(0.1, 0.5),
        "alpha": exponents,
        "data": st.floats(0.1, 0.5),
        "beta": exponents,
        "gamma": st.floats(0.5, 2.0),
    }
)


def parameters_of(law, truth):
    """A and B from the size of their terms in the middle of the grid, so that no term is negligible."""
    gamma = truth["gamma"] if law is GAMMA else 1.0
    values = {name: truth[name] for name in ("E", "alpha", "beta", "gamma") if name in law.parameters}
    values["A"] = truth["capacity"] ** (1 / gamma) * 1e4 ** truth["alpha"]
    values["B"] = truth["data"] ** (1 / gamma) * 4e3 ** truth["beta"]
    return values


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
@given(truth=truths)
@settings(max_examples=40, deadline=None)
def test_jacobian_is_the_derivative(law, truth):
    theta = law.vector(parameters_of(law, truth))
    exact = law.jacobian(theta, N, D)
    assert exact.shape == (len(N), len(law.parameters))
    for place, size in enumerate(theta):
        step = np.zeros_like(theta)
        step[place] = 1e-5 * size
        numeric = (law.value(theta + step, N, D) - law.value(theta - step, N, D)) / (2e-5 * size)
        np.testing.assert_allclose(exact[:, place], numeric, rtol=1e-5, atol=1e-9 * np.abs(numeric).max())


@pytest.mark.parametrize("objective", ["lsq", "linear"])
@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
@given(truth=truths)
@settings(max_examples=12, deadline=None)
def test_noise_free_points_give_the_truth_back(law, objective, truth):
    expected = parameters_of(law, truth)
    found = fit(law, N, D, law.predict(expected, N, D), objective=objective)
    assert found.status == "converged"
    assert found.parameters == pytest.approx(expected, rel=1e-6)
    assert np.abs(found.residuals).max() < 1e-9


def test_gamma_one_is_chinchilla():
    plain = {"E": 0.1, "A": 50.0, "alpha": 0.6, "B": 20.0, "beta": 0.5}
    np.testing.assert_allclose(GAMMA.predict(plain | {"gamma": 1.0}, N, D), CHINCHILLA.predict(plain, N, D))


@pytest.mark.skipif(not CASES.is_dir(), reason="the public cases are not here")
@pytest.mark.parametrize(
    ("objective", "E", "alpha", "beta"), [("lsq", 0.60209, 0.30677, 0.31097), ("linear", 0.60467, 0.31001, 0.31364)]
)
def test_llama_3_isoflop_points(objective, E, alpha, beta):
    points = pd.read_csv(CASES / "isoflop_llama_3_raw_loss.csv")
    found = fit(CHINCHILLA, points["N"], points["D"], points["loss"], objective=objective)
    assert found.status == "converged"
    assert [found.parameters[name] for name in ("E", "alpha", "beta")] == pytest.approx([E, alpha, beta], abs=1e-4)


def test_a_missing_floor_is_reported_as_a_bound():
    found = fit(CHINCHILLA, N, D, 50 * N**-0.6 + 9 * D**-0.5 - 0.002)
    assert found.status == "bound_hit"
    assert found.parameters["E"] == pytest.approx(0, abs=1e-9)
    assert "E is at its lower bound 0" in found.message


def test_an_axis_without_effect_is_reported():
    found = fit(CHINCHILLA, N, D, 0.1 + 9 * D**-0.5 + 1e-4 * np.log(N))
    assert found.status == "bound_hit"
    assert "no effect of N" in found.message


def test_too_few_points_are_not_identified():
    found = fit(CHINCHILLA, N[:5], D[:5], 1 / np.arange(1.0, 6.0))
    assert found.status == "not_identified"
    assert not found.usable
    assert "5 points" in found.message


def test_the_fit_does_not_depend_on_units_or_order(grid):
    points = grid.points()
    found = fit(CHINCHILLA, points.N, points.D, points.loss)
    order = np.random.default_rng(0).permutation(len(points))
    again = fit(CHINCHILLA, points.N[order] * 1e6, points.D[order] * 1e6, points.loss[order] * 3)
    assert again.value == pytest.approx(found.value, rel=1e-9)
    assert again.parameters["alpha"] == pytest.approx(found.parameters["alpha"], rel=1e-5)
    assert again.parameters["E"] == pytest.approx(3 * found.parameters["E"], rel=1e-5, abs=1e-9)


def test_weights_count_as_repeats(grid):
    points = grid.points()
    weights = np.ones(len(points))
    weights[3] = 2
    weighted = fit(CHINCHILLA, points.N, points.D, points.loss, weights=weights)
    repeated = fit(CHINCHILLA, *(np.append(values, values[3]) for values in (points.N, points.D, points.loss)))
    assert weighted.parameters == pytest.approx(repeated.parameters, rel=1e-6)


@pytest.mark.parametrize(
    ("change", "word"), [({"loss": [0.1, -1.0]}, "loss"), ({"N": [1.0]}, "N"), ({"objective": "huber"}, "objective")]
)
def test_impossible_input_is_named(change, word):
    arguments = {"N": [1.0, 2.0], "D": [1.0, 2.0], "loss": [0.1, 0.2]} | change
    with pytest.raises(UserError, match=word):
        fit(CHINCHILLA, **arguments)
