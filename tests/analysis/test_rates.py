"""The learning-rate law."""

import numpy as np
import pandas as pd
import pytest

from analysis.answers.parabola import bracketed_optimum
from analysis.answers.rates import learning_rate_law


def searched(make_rows, best, scatter=0.0, factors=(0.25, 0.5, 1.0, 2.0, 4.0), sizes=(100, 400, 1600)):
    """Rows of a search about `best(n, d)`, with log error a parabola in log learning rate."""
    rng = np.random.default_rng(0)
    rows = []
    for n in sizes:
        for d in (1000, 4000, 16000):
            for factor in factors:
                distance = np.log(1e-3 * factor / best(n, d))
                mae = float(0.3 * np.exp(0.05 * distance**2 + rng.normal(0, scatter)))
                rows.append(
                    {"trial": f"{n}-{d}-{factor}", "num_params": n, "num_spectra": d, "rung": f"w{n}"}
                    | {"lr": 1e-3 * factor, "val_mae_dex": mae}
                )
    return make_rows(rows)


def test_known_exponents_are_recovered(make_rows):
    found = learning_rate_law(searched(make_rows, lambda n, d: 1e-3 * (n / 400) ** -0.3 * (d / 4000) ** 0.1))
    assert found.exponents == pytest.approx({"N": -0.3, "D": 0.1}, abs=1e-9)
    assert found.optima["bracketed"].all()
    assert np.exp(np.log(found.optima["lr_opt"]).mean()) == pytest.approx(1e-3)


def test_intervals_hold_the_truth_about_as_often_as_they_say(make_rows):
    rng = np.random.default_rng(3)
    rows = searched(make_rows, lambda n, d: 1e-3 * (n / 400) ** -0.3)
    inside = 0
    for _ in range(40):
        noisy = rows.assign(val_mae_dex=rows["val_mae_dex"] * np.exp(rng.normal(0, 0.01, len(rows))))
        low, high = learning_rate_law(noisy).intervals["N"]
        inside += low <= -0.3 <= high
    assert 30 <= inside <= 40


def test_an_optimum_at_the_edge_does_not_count(make_rows):
    found = learning_rate_law(searched(make_rows, lambda n, d: 1e-3 if n < 1600 else 1e-1))
    edge = found.optima["N"] == 1600
    assert found.optima.loc[edge, "reason"].str.contains("beyond the largest").all()
    assert found.optima.loc[edge, "lr_opt"].isna().all()
    assert found.optima.loc[~edge, "bracketed"].all()
    assert "6 of 9 cells" in found.words


def test_two_rates_are_no_law(make_rows):
    assert learning_rate_law(searched(make_rows, lambda n, d: 1e-3, factors=(0.5, 2.0))) is None


def test_too_few_optima_are_reported(make_rows):
    rows = searched(make_rows, lambda n, d: 1e-3)
    found = learning_rate_law(rows[(rows["num_params"] == 100) & (rows["num_spectra"] == 1000)])
    assert found.exponents == {}
    assert "too few" in found.words


def test_trials_that_failed_take_no_part(make_rows):
    rows = searched(make_rows, lambda n, d: 1e-3)
    whole = learning_rate_law(rows)
    lost = make_rows([{"trial": "x", "status": "diverged", "val_mae_dex": float("nan"), "lr": 1.0}])
    lost["num_params"] = 100
    with_lost = learning_rate_law(pd.concat([rows, lost], ignore_index=True))
    assert with_lost.optima.equals(whole.optima)


def test_a_parabola_is_exact():
    x = np.array([-1.0, 0.5, 2.0, 3.0])
    assert bracketed_optimum(x + 50, 2 * (x - 0.7) ** 2 - 3)[:2] == pytest.approx((50.7, -3.0))
