"""IsoFLOP profiles: the best size at each compute, without a law."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.answers.isoflop import isoflop_profiles, planned_profiles
from analysis.points.cost import SIX_N_D, Cost
from analysis.points.table import Points
from tests.analysis.conftest import D, N
from tests.analysis.test_fit import CASES, case, needs_cases


def profile_table(exponent, budgets=(1e9, 1e10, 1e11, 1e12), span=3.0, points=7, offset=0.0):
    rows = []
    for C in budgets:
        best = 0.3 * C**exponent
        n = best * np.exp(np.linspace(-span, span, points) + offset)
        loss = 2 + C**-0.05 + 0.01 * np.log(n / best) ** 2
        rows.append(pd.DataFrame({"N": n, "D": C / (6 * n), "C": C, "loss": loss}))
    return pd.concat(rows, ignore_index=True)


@given(exponent=st.floats(0.2, 0.8), order=st.randoms(use_true_random=False))
@settings(max_examples=20, deadline=None)
def test_profiles_recover_the_exponent(exponent, order):
    table = profile_table(exponent)
    table = table.iloc[order.sample(range(len(table)), len(table))]
    found = isoflop_profiles(table)
    assert found.a == pytest.approx(exponent, abs=1e-6)
    assert found.profiles["bracketed"].all()
    assert found.profiles["N_opt"].to_numpy() == pytest.approx(0.3 * found.profiles["C"] ** exponent, rel=1e-5)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"offset": 4.0}, "beyond the smallest"),
        ({"offset": -4.0}, "beyond the largest"),
    ],
)
def test_an_optimum_that_is_not_bracketed_is_refused(change, word):
    table = profile_table(0.5, **change)
    found = isoflop_profiles(table)
    assert not found.profiles["bracketed"].any()
    assert found.profiles["reason"].str.contains(word).all()
    assert found.profiles["N_opt"].isna().all()
    assert np.isnan(found.a)
    assert word in found.words


def test_a_hill_is_no_optimum():
    table = profile_table(0.5).assign(loss=lambda t: 5 - t["loss"])
    found = isoflop_profiles(table)
    assert found.profiles["reason"].str.contains("does not open upwards").all()


@needs_cases
def test_llama_profiles_give_the_reference_exponents():
    table = pd.read_csv(CASES / "isoflop_llama_3_raw_loss.csv")
    found = isoflop_profiles(table)
    assert found.a == pytest.approx(0.4632, abs=5e-5)
    assert found.a_interval[0] < found.a < found.a_interval[1]


def points_of(table):
    return Points(N=table["N"].to_numpy(), D=table["D"].to_numpy(), loss=table["loss"].to_numpy())


def test_runs_planned_at_budgets_are_recognised_and_others_are_not():
    table = profile_table(0.45)
    found = planned_profiles(points_of(table), SIX_N_D, 0.9)
    assert found.a == pytest.approx(0.45, abs=1e-6)
    assert found.profiles["C"].to_numpy() == pytest.approx([1e9, 1e10, 1e11, 1e12])
    twice = pd.concat([table, table.assign(loss=table["loss"] * 1.001)])
    assert planned_profiles(points_of(twice), SIX_N_D, 0.9).profiles["points"].tolist() == [7, 7, 7, 7]
    rng = np.random.default_rng(0)
    scattered = Points(N=10 ** rng.uniform(6, 9, 200), D=10 ** rng.uniform(8, 11, 200), loss=rng.uniform(2, 3, 200))
    assert planned_profiles(scattered, SIX_N_D, 0.9) is None
    assert planned_profiles(points_of(table), Cost(flops_per_param_sample=float("nan"), words=""), 0.9) is None
    assert planned_profiles(points_of(table.iloc[:14]), SIX_N_D, 0.9) is None  # two budgets
    curve = Points(N=np.ones(5), D=10.0 ** np.arange(5), loss=np.arange(5, 0, -1.0))
    assert planned_profiles(curve, SIX_N_D, 0.9) is None


def test_cells_of_a_grid_by_powers_are_profiles_where_they_lie_on_one_compute():
    """On a grid whose steps agree, diagonals share their compute; the rule asks for three of them with three sizes."""
    found = planned_profiles(Points(N=N, D=D, loss=2 + np.log(N / D) ** 2 / 100), SIX_N_D, 0.9)
    assert found is not None
    assert found.profiles["points"].tolist() == [3, 4, 5, 4, 3]


@needs_cases
def test_the_llama_runs_are_planned():
    found = planned_profiles(case("isoflop_llama_3_raw_loss.csv"), SIX_N_D, 0.9)
    assert found.a == pytest.approx(0.463, abs=0.02)
