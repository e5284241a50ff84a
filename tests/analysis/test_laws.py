"""Every functional form: derivatives, units, what it contains as a special case, bounds, and where a search starts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.laws import CURVES, LAWS, SELECTABLE, SURFACES

LOGS_N, LOGS_D = (axis.ravel() for axis in np.meshgrid(np.linspace(-4.1, 3.9, 7), np.linspace(-3, 3, 6), indexing="ij"))
LOGS = {
    ("N", "D"): np.stack([LOGS_N, LOGS_D]),
    ("N", "D", "S"): np.stack([LOGS_N, LOGS_D, LOGS_D + np.tile([-1.0, 0.0, 0.7, 2.0, 3.5, 1.0, 0.3], 6)]),
    ("x",): np.linspace(-6, 6, 40)[None],
}
RANGES = {
    "E": (0.02, 0.2),
    "A": (0.1, 0.5),
    "alpha": (0.2, 1.2),
    "B": (0.1, 0.5),
    "beta": (0.2, 1.2),
    "beta2": (0.0, 1.2),
    "K": (0.3, 3.0),
    "gamma": (0.5, 2.0),
    "R": (0.01, 0.2),
    "rho": (0.2, 1.0),
    "r_D": (1.0, 30.0),
    "r_N": (1.0, 30.0),
    "g": (0.01, 1.0),
    "E0": (0.8, 3.0),
    "a": (0.1, 2.5),
    "c": (-1.0, 1.5),
    "f": (0.05, 1.0),
}
EACH = pytest.mark.parametrize("name", LAWS)
OFFSETS = {("N", "D"): [9.0, -2.0], ("N", "D", "S"): [9.0, -2.0, -2.0], ("x",): [5.0]}


def truths(law):
    """Parameter vectors in the middle of what studies find, for variables divided by their geometric means."""
    return st.tuples(*(st.floats(*RANGES[name]) for name in law.parameters)).map(np.array)


def value(name, logs, **parameters):
    return LAWS[name].value(LAWS[name].vector(parameters), logs)


@EACH
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_jacobian_is_the_derivative(name, data):
    law = LAWS[name]
    theta, logs = data.draw(truths(law)), LOGS[law.variables]
    exact = law.jacobian(theta, logs)
    steps = np.diag(1e-5 * np.maximum(theta, 0.1))
    numeric = (law.value(theta + steps, logs) - law.value(theta - steps, logs)) / (2 * np.diag(steps)[:, None])
    assert exact.shape == (len(law.parameters), logs.shape[1])
    for place, line in enumerate(exact):
        np.testing.assert_allclose(line, numeric[place], rtol=2e-5, atol=1e-7 + 1e-5 * np.abs(line).max())


@EACH
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_the_unit_of_a_variable_is_only_a_unit(name, data):
    law = LAWS[name]
    theta, logs, offsets = data.draw(truths(law)), LOGS[law.variables], np.array(OFFSETS[law.variables])
    moved = law.value(law.shifted(theta, offsets), logs + offsets[:, None])
    np.testing.assert_allclose(moved, law.value(theta, logs), rtol=1e-10)
    np.testing.assert_allclose(law.shifted(law.shifted(theta, offsets), -offsets), theta, rtol=1e-10)


@EACH
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_a_batch_is_its_members(name, data):
    law = LAWS[name]
    batch, logs = np.array([data.draw(truths(law)) for _ in range(3)]), LOGS[law.variables]
    offsets = np.array(OFFSETS[law.variables])
    np.testing.assert_allclose(law.value(batch, logs), [law.value(each, logs) for each in batch], rtol=1e-13)
    np.testing.assert_allclose(law.jacobian(batch, logs), [law.jacobian(each, logs) for each in batch], rtol=1e-10)
    np.testing.assert_allclose(law.shifted(batch, offsets), [law.shifted(each, offsets) for each in batch])


@EACH
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_on_its_bounds_a_form_is_finite(name, data):
    law = LAWS[name]
    lower, upper = np.array(law.lower), np.minimum(law.upper, 10.0)
    chosen = np.array(data.draw(st.lists(st.sampled_from("lmu"), min_size=len(lower), max_size=len(lower))))
    theta = np.select([chosen == "l", chosen == "u"], [lower, upper], data.draw(truths(law)))
    assert np.isfinite(law.value(theta, LOGS[law.variables])).all()
    jacobian = law.jacobian(theta, LOGS[law.variables])
    assert np.isfinite(jacobian @ jacobian.T).all()


@EACH
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_starts_are_inside_the_bounds_and_near_the_truth(name, data):
    law = LAWS[name]
    logs = LOGS[law.variables]
    loss = law.value(data.draw(truths(law)), logs)
    starts = law.starts(logs, loss)
    assert (starts >= law.lower).all()
    assert (starts <= law.upper).all()
    cost = np.sum((law.value(starts, logs) / loss - 1) ** 2, axis=1)
    spread = np.sum((loss / loss.mean() - 1) ** 2)
    assert cost[0] < 0.1 * spread + 1e-4 * len(loss)
    assert cost[0] == pytest.approx(cost.min(), rel=1e-3, abs=1e-6)


@EACH
def test_named_parameters_and_plain_variables(name):
    law = LAWS[name]
    parameters = {each: np.mean(RANGES[each]) for each in law.parameters}
    variables = np.exp(LOGS[law.variables])
    predicted = law.predict(parameters, *(axis[:, None] for axis in variables))
    assert predicted.shape == (variables.shape[1], 1)
    np.testing.assert_allclose(predicted[:, 0], law.value(law.vector(parameters), np.log(variables)), rtol=1e-12)
    assert law.formula
    assert law.source
    assert all(law.meaning.values())


def test_every_form_is_in_one_list():
    assert [*SURFACES, *CURVES] == list(LAWS)
    assert set(SELECTABLE) == set(SURFACES) - {"data_constrained"}
    assert all(LAWS[name].variables[:2] == ("N", "D") for name in SURFACES)
    assert all(LAWS[name].variables == ("x",) for name in CURVES)


PLAIN = {"E": 0.1, "A": 0.3, "alpha": 0.6, "B": 0.2, "beta": 0.4}
CURVE = {"E": 0.1, "B": 0.2, "beta": 0.4}
SURFACE_LOGS, CURVE_LOGS = LOGS["N", "D"], LOGS["x",]


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("gamma", {"gamma": 1.0}),
        ("broken", {"beta2": 0.4, "K": 0.5}),
        ("ridge", {"R": 0.0, "rho": 0.5}),
    ],
)
def test_contains_chinchilla(name, extra):
    np.testing.assert_allclose(
        value(name, SURFACE_LOGS, **PLAIN, **extra), value("chinchilla", SURFACE_LOGS, **PLAIN), rtol=1e-12
    )


def test_special_cases_of_chinchilla():
    tied = {name: size for name, size in PLAIN.items() if name != "beta"}
    np.testing.assert_allclose(
        value("tied", SURFACE_LOGS, **tied), value("chinchilla", SURFACE_LOGS, **tied, beta=0.6), rtol=1e-12
    )
    without = {name: size for name, size in PLAIN.items() if name != "E"}
    np.testing.assert_allclose(
        value("no_floor", SURFACE_LOGS, **without), value("chinchilla", SURFACE_LOGS, **without, E=0.0), rtol=1e-12
    )


def test_gamma_contains_kaplan():
    A, alpha, B, beta = (PLAIN[name] for name in ("A", "alpha", "B", "beta"))
    inner = {"E": 0.1, "A": A ** (1 / beta), "alpha": alpha / beta, "B": B ** (1 / beta), "beta": 1.0, "gamma": beta}
    np.testing.assert_allclose(
        value("gamma", SURFACE_LOGS, **inner), value("kaplan", SURFACE_LOGS, **PLAIN), rtol=1e-12
    )


def test_kaplan_is_a_power_law_along_each_axis():
    far = SURFACE_LOGS + np.array([[0.0], [60.0]])
    np.testing.assert_allclose(value("kaplan", far, **PLAIN), 0.1 + 0.3 * np.exp(-0.6 * far[0]), rtol=1e-9)
    far = SURFACE_LOGS + np.array([[60.0], [0.0]])
    np.testing.assert_allclose(value("kaplan", far, **PLAIN), 0.1 + 0.2 * np.exp(-0.4 * far[1]), rtol=1e-9)


def test_plateau_is_a_break_to_nothing():
    np.testing.assert_allclose(
        value("plateau", SURFACE_LOGS, **PLAIN, K=0.7),
        value("broken", SURFACE_LOGS, **PLAIN, beta2=0.0, K=0.7),
        rtol=1e-12,
    )
    far = value("plateau", np.array([[0.0, 0.0], [5.0, 9.0]]), **PLAIN, K=0.7)
    assert far[0] == pytest.approx(far[1], rel=1e-6)
    assert far[0] == pytest.approx(0.1 + 0.3 + 0.2 * 0.7**-0.4, rel=1e-6)


def test_broken_has_its_exponents_on_either_side():
    logs = np.array([[0.0] * 4, [-9.0, -8.0, 8.0, 9.0]])
    before, after = np.diff(np.log(value("broken", logs, **PLAIN | {"E": 0.0, "A": 0.0}, beta2=1.1, K=1.0)))[::2]
    assert (before, after) == pytest.approx((-0.4, -1.1), abs=1e-6)


REPEATS = {"r_D": 15.4, "r_N": 5.3}


def test_data_seen_once_by_models_that_fit_it_is_chinchilla():
    # A is large enough that no model exceeds N_opt
    parameters = PLAIN | {"A": 50.0}
    S = SURFACE_LOGS[1] - np.linspace(0, 2, 42)
    np.testing.assert_allclose(
        value("data_constrained", np.stack([*SURFACE_LOGS, S]), **parameters, **REPEATS),
        value("chinchilla", np.stack([SURFACE_LOGS[0], S]), **parameters),
        rtol=1e-12,
    )


def test_repeats_that_never_tire_are_new_data():
    logs = LOGS["N", "D", "S"]
    np.testing.assert_allclose(
        value("data_constrained", logs, **PLAIN, r_D=1e9, r_N=1e9),
        value("chinchilla", logs[[0, 2]], **PLAIN),
        rtol=1e-6,
    )


def test_data_constrained_by_hand():
    # U = 2, S/U = 3; N_opt = 2^(0.4/0.6)·(0.6·0.3/(0.4·0.2))^(1/0.6), and N is five times that
    best = 2 ** (0.4 / 0.6) * (0.18 / 0.08) ** (1 / 0.6)
    N_eff = best * (1 + 5.3 * (1 - np.exp(-4 / 5.3)))
    D_eff = 2 * (1 + 15.4 * (1 - np.exp(-2 / 15.4)))
    found = value("data_constrained", np.log([[5 * best], [2.0], [6.0]]), **PLAIN, **REPEATS)
    assert found == pytest.approx(0.1 + 0.3 * N_eff**-0.6 + 0.2 * D_eff**-0.4, rel=1e-12)


def test_samples_seen_keep_their_ratio_to_the_spectra():
    with pytest.raises(ValueError, match="same offset"):
        LAWS["data_constrained"].shifted(np.ones(7), np.array([1.0, 2.0, 3.0]))


@pytest.mark.parametrize(
    ("name", "extra"), [("m3", {"g": 0.0}), ("m4", {"a": 0.0, "E0": 50.0}), ("bnsl", {"c": 0.0, "K": 2.0, "f": 0.3})]
)
def test_curves_contain_m2(name, extra):
    np.testing.assert_allclose(value(name, CURVE_LOGS, **CURVE, **extra), value("m2", CURVE_LOGS, **CURVE), rtol=1e-9)


def test_m1_is_m2_without_a_floor():
    np.testing.assert_allclose(
        value("m1", CURVE_LOGS, B=0.2, beta=0.4), value("m2", CURVE_LOGS, E=0.0, B=0.2, beta=0.4), rtol=1e-12
    )


@settings(max_examples=60, deadline=None)
@given(theta=truths(LAWS["m4"]))
def test_m4_satisfies_its_equation(theta):
    E, B, beta, E0, a = theta
    loss, x = LAWS["m4"].value(theta, CURVE_LOGS), np.exp(CURVE_LOGS[0])
    assert ((loss > E) & (loss <= E0)).all()
    inner = (E0 - loss > 1e-4) & (loss - E > 1e-4)  # where the differences have digits left
    left = (loss[inner] - E) / (E0 - loss[inner]) ** a
    np.testing.assert_allclose(left, (B * x**-beta)[inner], rtol=1e-9)


def test_bnsl_with_a_narrow_break_is_broken():
    curve = value("bnsl", CURVE_LOGS, **CURVE, c=0.5, K=1.5, f=0.25)
    surface = value("broken", np.stack([0 * CURVE_LOGS[0], CURVE_LOGS[0]]), **PLAIN | {"A": 0.0}, beta2=0.9, K=1.5)
    np.testing.assert_allclose(curve, surface, rtol=1e-12)
