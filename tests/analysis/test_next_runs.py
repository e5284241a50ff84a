"""What one more run tells about a forecast."""

import numpy as np
import pandas as pd
import pytest

from analysis.answers.next_runs import next_runs, run_hours
from analysis.fitting.fit import fit, refit
from analysis.intervals.compare import compare
from analysis.laws import CHINCHILLA
from analysis.points.table import Points
from scaling.errors import UserError
from tests.analysis.conftest import TRUTH, D, N
from tests.analysis.test_budget import made

TARGET = (1e6, 1e6)


def hours(n, d):
    return n * d / 1e9


def test_the_shrink_is_what_refits_show():
    """Many fits with and without one more run at each of two candidates: the scatter of the forecast shrinks as told."""
    found = compare(made("chinchilla", scatter=0.02), ["chinchilla"], replicates=20)
    candidates = pd.DataFrame({"N": [1.0e6, 1e3], "D": [5.12e5, 5e2]})
    told = next_runs(found, TARGET, hours, candidates).set_index("N")["shrink"]
    rng = np.random.default_rng(0)

    def spread(n, d):
        sizes = np.append(N, n), np.append(D, d)
        truth = CHINCHILLA.predict(TRUTH, *sizes)
        losses = truth * np.exp(rng.normal(0, 0.02, (250, len(truth))))
        exact = Points(N=sizes[0], D=sizes[1], loss=truth)
        refits = refit(fit(CHINCHILLA, exact), exact, loss=losses)
        return np.std(np.log(CHINCHILLA.value(refits.theta, np.log(np.array(TARGET))[:, None])))

    before = spread([], [])
    for n, d in candidates.itertuples(index=False):
        assert 1 - spread([n], [d]) / before == pytest.approx(told[n], abs=0.1)


def test_runs_near_the_target_inform_most_and_cheap_ones_come_first():
    found = compare(made("chinchilla"), ["chinchilla"], replicates=20)
    table = next_runs(found, TARGET, hours)
    assert table["shrink_per_hour"].is_monotonic_decreasing
    assert table["shrink"].between(0, 1).all()
    assert set(table["kind"]) == {"repeat", "new"}
    best = table.loc[table["shrink"].idxmax()]
    assert best["N"] > N.max() or best["D"] > D.max()
    dear = next_runs(found, TARGET, lambda n, d: 10 * hours(n, d))
    assert dear["shrink_per_hour"].to_numpy() == pytest.approx(table["shrink_per_hour"].to_numpy() / 10)


@pytest.mark.parametrize("objective", ["linear", "huber"])
def test_every_objective_has_next_runs(objective):
    found = compare(made("chinchilla"), ["chinchilla"], objective=objective, delta=1e-2, replicates=20)
    assert next_runs(found, TARGET, hours)["shrink"].max() > 0.01


def test_a_cost_that_is_not_positive_is_refused():
    found = compare(made("chinchilla"), ["chinchilla"], replicates=20)
    with pytest.raises(UserError, match="hours"):
        next_runs(found, TARGET, lambda n, d: 0 * n)


def test_hours_follow_the_rows(make_rows):
    cells = make_rows(
        {"num_params": n, "num_spectra": d, "device_seconds": 3600 * n**0.8 * d**0.1}
        for n in (100, 400, 1600)
        for d in (1000, 4000)
    )
    assert run_hours(cells)(np.array([6400.0]), np.array([1e4])) == pytest.approx(6400**0.8 * 1e4**0.1)
    one_size = cells[cells["num_params"] == 100]
    assert run_hours(one_size)(np.array([100.0]), np.array([1000.0])) == pytest.approx(100**0.8 * 1000**0.1)
    assert run_hours(cells.assign(device_seconds=float("nan"))) is None
