"""Fits: the global minimum of every objective, answers known from public data, and outcomes that are reported."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import least_squares, linprog

from analysis.fitting.fit import fit, refit
from analysis.laws import CHINCHILLA, LAWS
from analysis.points.table import Points
from scaling.errors import UserError

CASES = Path(__file__).parents[3] / "shared" / "cases"
N, D = (axis.ravel() for axis in np.meshgrid([800.0, 2e3, 9e3, 3e4, 1.6e5], 512.0 * 2 ** np.arange(6), indexing="ij"))
TRUTH = {"E": 0.09, "A": 33.0, "alpha": 0.75, "B": 18.0, "beta": 0.67}

needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason="the public cases are not here")


def sampled(scatter, seed, outliers=0):
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, scatter, len(N))
    noise[rng.choice(len(N), outliers, replace=False)] += 0.5
    return Points(N=N, D=D, loss=CHINCHILLA.predict(TRUTH, N, D) * np.exp(noise))


def case(name):
    table = pd.read_csv(CASES / name)
    if "dropped_by_reference" in table:
        table = table[~table["dropped_by_reference"]]
    return Points(N=table["N"].to_numpy(), D=table["D"].to_numpy(), loss=table["loss"].to_numpy())


def residual_function(points, objective):
    logs = points.logs(("N", "D"))
    middle = logs.mean(axis=1, keepdims=True)

    def residuals(theta):
        predicted = CHINCHILLA.value(theta, logs - middle)
        return predicted - points.loss if objective == "linear" else np.log(predicted / points.loss)

    return residuals


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("objective", ["lsq", "linear", "huber"])
def test_no_other_start_leads_lower(objective, seed):
    """SciPy's solver from random starts, with numerical derivatives, is the judge."""
    points = sampled(0.1, seed, outliers=2)
    delta = 0.02
    found = fit(CHINCHILLA, points, objective=objective, delta=delta)
    rng = np.random.default_rng(seed)
    starts = np.column_stack(
        [rng.uniform(0, 0.3, (8, 2)), rng.uniform(0.02, 2.5, 8), rng.uniform(0, 0.3, 8), rng.uniform(0.02, 2.5, 8)]
    )
    best = min(
        least_squares(
            residual_function(points, objective),
            start,
            bounds=(CHINCHILLA.lower, CHINCHILLA.upper),
            loss="huber" if objective == "huber" else "linear",
            f_scale=delta,
            max_nfev=400,
        ).cost
        for start in starts
    )
    scale = 1 if objective == "huber" else 2
    assert found.status in ("converged", "bound_hit")
    assert found.value <= scale * best * (1 + 1e-7)


@pytest.mark.parametrize("seed", range(4))
def test_absolute_residuals_end_where_no_step_descends(seed):
    """At a minimum of Σ|r| the linear programme of the best small step finds (almost) nothing to gain."""
    points = sampled(0.05, seed, outliers=3)
    found = fit(CHINCHILLA, points, objective="l1")
    logs = points.logs(("N", "D"))
    slope = CHINCHILLA.jacobian(found.theta, logs) / found.predict(N, D)
    slope /= np.abs(slope).max(axis=1, keepdims=True)
    r, n, p = -found.residuals, len(points), len(found.theta)
    best = linprog(
        np.r_[np.zeros(p), np.ones(n)],
        A_ub=np.block([[slope.T, -np.eye(n)], [-slope.T, -np.eye(n)]]),
        b_ub=np.r_[-r, r],
        bounds=[(-1e-4, 1e-4)] * p + [(0, None)] * n,
    )
    assert found.status == "converged"
    assert found.value == pytest.approx(np.abs(r).sum(), rel=1e-6)
    assert found.value - best.fun < 1e-6 * found.value


def test_huber_at_a_large_delta_is_half_the_squares():
    points = sampled(0.03, 0)
    squares, huber = fit(CHINCHILLA, points), fit(CHINCHILLA, points, objective="huber", delta=10.0)
    assert huber.value == pytest.approx(squares.value / 2, rel=1e-9)
    assert huber.parameters == pytest.approx(squares.parameters, rel=1e-5)


def test_robust_objectives_ignore_what_squares_do_not():
    clean, spoilt = sampled(0.002, 1), sampled(0.002, 1, outliers=4)
    expected = fit(CHINCHILLA, clean).parameters
    for objective in ("huber", "l1"):
        found = fit(CHINCHILLA, spoilt, objective=objective).parameters
        assert found["beta"] == pytest.approx(expected["beta"], abs=0.02)
    assert abs(fit(CHINCHILLA, spoilt).parameters["beta"] - expected["beta"]) > 0.04


@pytest.mark.parametrize("objective", ["lsq", "linear", "huber", "l1"])
def test_refits_in_a_batch_equal_fits_one_by_one(objective):
    points = sampled(0.03, 2)
    rng = np.random.default_rng(0)
    weights = rng.integers(1, 4, (5, len(points))).astype(float)
    found = fit(CHINCHILLA, points, objective=objective)
    batch = refit(found, points, weights=weights)
    assert batch.converged.all()
    for theta, value, w in zip(batch.theta, batch.value, weights, strict=True):
        alone = fit(CHINCHILLA, points, objective=objective, weights=w)
        assert value == pytest.approx(alone.value, rel=1e-5)
        assert theta[[2, 4]] == pytest.approx([alone.parameters["alpha"], alone.parameters["beta"]], rel=5e-3)


def test_a_weight_of_zero_in_a_refit_leaves_the_point_out():
    points = sampled(0.03, 3)
    weights = np.ones(len(points))
    weights[[4, 11]] = 0
    batch = refit(fit(CHINCHILLA, points), points, weights=weights[None])
    alone = fit(CHINCHILLA, points.take(weights > 0))
    assert batch.value[0] == pytest.approx(alone.value, rel=1e-6)


@needs_cases
def test_the_chinchilla_points_as_the_reference_has_them():
    found = fit(CHINCHILLA, case("chinchilla_epoch.csv"), objective="huber", delta=1e-3)
    assert found.status == "converged"
    assert found.value <= 0.00101827402 * (1 + 1e-6)
    assert [found.parameters[name] for name in ("alpha", "beta")] == pytest.approx([0.34731, 0.36717], abs=1e-4)
    assert [found.parameters[name] for name in ("A", "B")] == pytest.approx([477.826, 2143.418], rel=1e-3)


@needs_cases
def test_the_quoted_chinchilla_parameters_are_those_of_absolute_residuals():
    found = fit(CHINCHILLA, case("chinchilla_epoch.csv"), objective="l1").parameters
    quoted = {"E": 1.8169, "A": 482.01, "alpha": 0.3478, "B": 2085.43, "beta": 0.3659}
    assert found == pytest.approx(quoted, rel=1e-3)


@needs_cases
@pytest.mark.parametrize(
    ("objective", "E", "alpha", "beta"), [("lsq", 0.60209, 0.30677, 0.31097), ("linear", 0.60467, 0.31001, 0.31364)]
)
def test_llama_3_isoflop_points(objective, E, alpha, beta):
    found = fit(CHINCHILLA, case("isoflop_llama_3_raw_loss.csv"), objective=objective)
    assert found.status == "converged"
    assert [found.parameters[name] for name in ("E", "alpha", "beta")] == pytest.approx([E, alpha, beta], abs=1e-4)


def test_the_original_study_of_one_model():
    """MAE in z units over 50k to 1M spectra: ../shared/reference; nearly all of the last value is floor."""
    points = Points(
        N=np.ones(5), D=np.array([5e4, 1e5, 2e5, 5e5, 1e6]), loss=np.array([0.5754, 0.4716, 0.4150, 0.3831, 0.3720])
    )
    found = fit(LAWS["m2"], points)
    assert found.status == "converged"
    assert found.parameters["E"] == pytest.approx(0.360, abs=0.002)
    assert found.parameters["beta"] == pytest.approx(0.97, abs=0.02)


def test_a_missing_floor_is_reported_as_a_bound():
    found = fit(CHINCHILLA, Points(N=N, D=D, loss=50 * N**-0.6 + 9 * D**-0.5 - 0.002))
    assert found.status == "bound_hit"
    assert found.parameters["E"] == pytest.approx(0, abs=1e-9)
    assert "E is at its lower bound 0" in found.message


def test_an_axis_without_effect_is_reported():
    found = fit(CHINCHILLA, Points(N=N, D=D, loss=0.1 + 9 * D**-0.5 + 1e-4 * np.log(N)))
    assert found.status == "bound_hit"
    assert "no effect of N" in found.message


@pytest.mark.parametrize("places", [range(5), [0, 0, 0, 6, 6, 6, 12, 12]])
def test_too_few_points_or_sizes_are_not_identified(places):
    places = np.array(places)
    points = Points(N=N[places], D=D[places], loss=np.linspace(1, 0.5, len(places)))
    found = fit(CHINCHILLA, points)
    assert found.status == "not_identified"
    assert not found.usable
    assert f"{len(places)} points" in found.message


def test_the_fit_does_not_depend_on_units_or_order(grid):
    points = grid.points()
    found = fit(CHINCHILLA, points)
    order = np.random.default_rng(0).permutation(len(points))
    again = fit(CHINCHILLA, Points(N=points.N[order] * 1e6, D=points.D[order] * 1e6, loss=points.loss[order] * 3))
    assert again.value == pytest.approx(found.value, rel=1e-9)
    assert again.parameters["alpha"] == pytest.approx(found.parameters["alpha"], rel=1e-5)
    assert again.parameters["E"] == pytest.approx(3 * found.parameters["E"], rel=1e-5, abs=1e-9)


def test_weights_count_as_repeats(grid):
    points = grid.points()
    weights = np.ones(len(points))
    weights[3] = 2
    weighted = fit(CHINCHILLA, points, weights=weights)
    repeated = fit(CHINCHILLA, points.take(np.append(np.arange(len(points)), 3)))
    assert weighted.parameters == pytest.approx(repeated.parameters, rel=1e-6)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"objective": "cubic"}, "objective 'cubic'"),
        ({"delta": 0.0}, "delta"),
        ({"weights": [1.0, -1.0]}, "weights"),
        ({"law": LAWS["m2"]}, "curve of one variable"),
    ],
)
def test_impossible_input_is_named(change, word):
    arguments = {"law": CHINCHILLA, "points": Points(N=N, D=D, loss=N**-0.5)} | change
    with pytest.raises(UserError, match=word):
        fit(**arguments)
