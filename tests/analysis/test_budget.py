"""The error budget adds up to the law, whichever form, and gains are falls of the law."""

import numpy as np
import pytest

from analysis.answers.allocation import no_path
from analysis.answers.budget import error_budget, what_would_it_buy
from analysis.intervals.compare import compare
from analysis.laws import LAWS, SELECTABLE
from analysis.points.cost import SIX_N_D, Cost
from analysis.points.table import Points
from scaling.errors import UserError
from tests.analysis.conftest import TRUTH, D, N

DETAILS = {"gamma": 0.7, "beta2": 0.2, "K": 9e3, "R": 0.01, "rho": 0.5, "r_D": 5.0, "r_N": 5.0}


def made(form, scatter=0.002, **changes):
    law = LAWS[form]
    S = np.full_like(D, 2e4) if "S" in law.variables else None
    values = TRUTH | DETAILS | changes
    loss = law.predict(values, N, D, *([] if S is None else [S]))
    return Points(N=N, D=D, loss=loss * np.exp(np.random.default_rng(0).normal(0, scatter, len(N))), S=S)


@pytest.mark.parametrize("form", [*SELECTABLE, "data_constrained"])
def test_the_parts_add_up_to_the_law(form):
    found = compare(made(form), [form], replicates=40)
    S = 2e4 if form == "data_constrained" else None
    budget = error_budget(found, N[7], D[7], S)
    law = found.law.predict(N[7], D[7], *([] if S is None else [S]))
    assert budget.table["value"].sum() == pytest.approx(float(law), rel=1e-9)
    assert budget.table["share"].sum() == pytest.approx(1)
    assert (budget.table["value"] >= -1e-12).all()
    assert (budget.table["low"] <= budget.table["high"]).all()


def test_the_parts_of_a_sum_are_its_terms():
    found = compare(made("chinchilla"), ["chinchilla"], replicates=40)
    E, A, alpha, B, beta = found.law.theta
    values = error_budget(found, 4e3, 8e3).table.set_index("term")["value"]
    expected = {"irreducible": E, "capacity": A * 4e3**-alpha, "data": B * 8e3**-beta}
    assert values.to_dict() == pytest.approx(expected, rel=1e-12)


def test_overfitting_counts_as_lack_of_data():
    found = compare(made("ridge", scatter=1e-6), ["ridge"], replicates=20)
    values = error_budget(found, 2.56e5, 500.0).table.set_index("term")["value"]
    assert values["irreducible"] == pytest.approx(0.1, rel=0.01)
    assert values["data"] == pytest.approx(8 * 500**-0.6 + 0.01 * 512**0.5, rel=0.01)


def test_parts_that_act_together_do_not_depend_on_an_order():
    found = compare(made("gamma", alpha=0.6, A=8.0), ["gamma"], replicates=20)
    mirrored = Points(N=D, D=N, loss=found.points.loss)
    there = compare(mirrored, ["gamma"], replicates=20)
    values = error_budget(found, 2e3, 7e3).table["value"].to_numpy()
    assert error_budget(there, 7e3, 2e3).table["value"].to_numpy() == pytest.approx(values[[0, 2, 1]], rel=1e-6)
    assert "act together" in error_budget(found, 2e3, 7e3).note


def test_repetition_is_what_more_distinct_spectra_would_save():
    found = compare(made("data_constrained", scatter=1e-6), ["data_constrained"], replicates=20)
    values = error_budget(found, 1e3, 500.0, 2e4).table.set_index("term")["value"]
    once = float(found.law.predict(1e3, 2e4, 2e4))
    assert values["repetition"] == pytest.approx(float(found.law.predict(1e3, 500.0, 2e4)) - once, rel=1e-9)
    assert values["repetition"] > 0.01


def test_intervals_hold_the_choice_of_form():
    points = made("chinchilla", scatter=0.1)
    alone = compare(points, ["chinchilla"], replicates=300)
    both = compare(points, ["chinchilla", "no_floor"], replicates=300)
    share = np.mean(both.bootstrap.chosen != both.best)
    assert 0.05 < share < 0.95
    budget = error_budget(both, N[-1], D[-1])
    assert f"{100 * share:.0f} % of the bootstrap's replicates select another form" in budget.note
    assert budget.table["low"][0] <= error_budget(alone, N[-1], D[-1]).table["low"][0]


def test_of_a_floor_in_quadrature_both_orders_count_alike():
    found = compare(made("quadrature"), ["quadrature"], replicates=20)
    values = error_budget(found, N[7], D[7]).table.set_index("term")["value"]
    E = found.law.parameters["E"]
    more_data, larger, now = (float(found.law.predict(n, d)) for n, d in ((N[7], 1e30), (1e30, D[7]), (N[7], D[7])))
    assert values["irreducible"] == pytest.approx(E)
    assert values["capacity"] == pytest.approx(0.5 * (more_data - E + now - larger), rel=1e-6)
    assert values["data"] == pytest.approx(0.5 * (larger - E + now - more_data), rel=1e-6)


def test_a_curve_has_two_parts():
    found = compare(made("chinchilla").take(N[0] == N), ["m2"], replicates=40)
    budget = error_budget(found, N[0], D[-1])
    assert budget.table["term"].tolist() == ["irreducible", "data"]
    assert budget.table["value"][0] == pytest.approx(found.law.parameters["E"])
    gains = what_would_it_buy(found, N[0], D[-1])
    assert gains["scenario"].tolist() == ["as now", "4× data"]


def test_gains_are_falls_of_the_law():
    found = compare(made("chinchilla"), ["chinchilla"], replicates=100)
    table = what_would_it_buy(found, N[-1], D[-1]).set_index("scenario")
    assert table.index.tolist() == ["as now", "4× data", "4× model", "4× compute", "4× both"]
    now = float(found.law.predict(N[-1], D[-1]))
    more = float(found.law.predict(N[-1], 4 * D[-1]))
    assert table.loc["4× data", "gain"] == pytest.approx(1 - more / now)
    assert (table["gain_low"] <= table["gain"] + 1e-12).all()
    assert (table["gain_high"] >= table["gain"] - 1e-12).all()
    assert table.loc["4× data", "gain_low"] == pytest.approx(1 - table.loc["4× data", "curve_high"] / now)
    assert table.loc["as now", ["gain", "gain_low", "gain_high"]].tolist() == [0, 0, 0]
    compute = table.loc["4× compute"]
    assert compute["N"] * compute["D"] == pytest.approx(4 * N[-1] * D[-1])


def test_compute_that_does_not_grow_with_data_is_no_scenario():
    found = compare(made("chinchilla"), ["chinchilla"], replicates=20)
    table = what_would_it_buy(found, N[-1], D[-1], cost=Cost(flops_per_param_sample=float("nan"), words="samples"))
    assert "4× compute" not in table["scenario"].tolist()


def test_more_training_is_a_scenario_where_the_samples_seen_are_given():
    found = compare(made("data_constrained"), ["data_constrained"], replicates=20)
    table = what_would_it_buy(found, N[-1], D[-1], S=2e4).set_index("scenario")
    assert table.loc["4× training", "gain"] > 0
    assert table.loc["4× training", "D"] == D[-1]


def test_samples_seen_that_differ_must_be_given():
    points = made("data_constrained")
    points = Points(N=points.N, D=points.D, loss=points.loss, S=points.S * np.linspace(1, 2, len(points)))
    found = compare(points, ["data_constrained"], replicates=20)
    with pytest.raises(UserError, match="samples seen"):
        error_budget(found, N[-1], D[-1])


def test_a_ratio_that_is_a_second_floor_gives_neither_a_budget_nor_a_best_size():
    truth = {"E": 0.05, "A": 33.0, "alpha": 0.75, "B": 18.0, "beta": 0.67, "R": 0.05}
    for rho, determined in ((0.02, False), (0.5, True)):
        points = Points(N=N, D=D, loss=LAWS["ridge"].predict(truth | {"rho": rho}, N, D))
        found = compare(points, ["ridge"], replicates=20)
        assert (error_budget(found, N.max(), D.max()) is not None) == determined
        assert ("second floor" in no_path(found, SIX_N_D)) != determined
