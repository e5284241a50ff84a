"""Profiles, the cluster bootstrap and forecasts: exact where theory is exact, and covering where it is not."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.answers.forecast import forecast
from analysis.fitting.fit import fit
from analysis.fitting.likelihood import likelihood
from analysis.intervals.compare import compare
from analysis.intervals.profile import parameter_intervals, profile_rise
from analysis.laws import CHINCHILLA, LAWS
from analysis.points.table import Points
from benchmarks.coverage import STELLAR, Case, forecast_cases, forecasts, parameters, summary
from scaling.errors import UserError

CASES = Path(__file__).parents[3] / "shared" / "cases"
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason="the public cases are not here")
ONE_CURVE = Points(
    N=np.ones(5), D=np.array([5e4, 1e5, 2e5, 5e5, 1e6]), loss=np.array([0.5754, 0.4716, 0.4150, 0.3831, 0.3720])
)


def study(seed=1, **changes):
    case = Case(**({"name": "test", "form": "chinchilla", "truth": STELLAR} | changes))
    return case.study(np.random.default_rng(seed))


def line(seed=0, seeds=1):
    """A power law, which is a straight line in logarithms: intervals are known exactly."""
    x = np.repeat(np.geomspace(1e2, 1e5, 8), seeds)
    return Points(
        N=np.ones(len(x)), D=x, loss=3 * x**-0.4 * np.exp(np.random.default_rng(seed).normal(0, 0.05, len(x)))
    )


def regression(points, level=0.9):
    """Intervals of slope and intercept, and the prediction of one point, from the textbook."""
    x, y = np.log(points.D), np.log(points.loss)
    found = stats.linregress(x, y)
    t = stats.t.ppf(0.5 + level / 2, len(x) - 2)
    variance = np.sum((y - found.intercept - found.slope * x) ** 2) / (len(x) - 2)

    def at(where):
        centre = found.intercept + found.slope * np.log(where)
        leverage = 1 / len(x) + (np.log(where) - x.mean()) ** 2 / np.sum((x - x.mean()) ** 2)
        curve, new = t * np.sqrt(variance * leverage), t * np.sqrt(variance * (1 + leverage))
        return np.exp([centre - curve, centre + curve]), np.exp([centre - new, centre + new])

    slope = np.sort(-found.slope + np.array([-1, 1]) * t * found.stderr)
    intercept = np.exp(found.intercept + np.array([-1, 1]) * t * found.intercept_stderr)
    return slope, intercept, at


def test_a_straight_line_has_the_intervals_of_the_textbook():
    points = line()
    found = compare(points, ["m1"], replicates=1, weigh="aicc")
    slope, intercept, at = regression(points)
    assert found.law_intervals["beta"] == pytest.approx(tuple(slope), rel=2e-3)
    assert found.law_intervals["B"] == pytest.approx(tuple(intercept), rel=5e-3)
    for where in (1e3, 4e5):
        cast = forecast(found, 1.0, where).iloc[0]
        curve, new = at(where)
        assert cast[["curve_low", "curve_high"]].tolist() == pytest.approx(curve, rel=2e-3)
        assert cast[["low", "high"]].tolist() == pytest.approx(new, rel=2e-3)


def test_seeds_of_a_cell_count_once():
    """Doubling every run says nothing new of the cells: the interval of the exponent stays."""
    points = line()
    twice = points.take(np.repeat(np.arange(len(points)), 2))
    single, double = (compare(each, ["m1"], replicates=1).law_intervals["beta"] for each in (points, twice))
    assert double == pytest.approx(single, rel=1e-3)


@pytest.mark.parametrize("seed", [0, 1])  # in the first the variance seems to change with D
def test_an_interval_ends_where_the_profile_reaches_students_quantile(seed):
    points = study(seed)
    likely = likelihood(fit(CHINCHILLA, points), points)
    t = stats.t.ppf(0.95, likely.dof)
    for name, (low, high) in parameter_intervals(likely, 0.9).items():
        assert profile_rise(likely, name, np.array([low, high])) == pytest.approx([-t, t], rel=0.01), name
        middle = likely.fitted.parameters[name]
        assert profile_rise(likely, name, np.array([middle])) == pytest.approx([0], abs=1e-2), name


@pytest.mark.parametrize("form", [name for name, law in LAWS.items() if law.variables == ("N", "D")])
def test_every_form_has_ordered_intervals_about_its_estimate(form):
    points = study(seeds=2)
    fitted = fit(LAWS[form], points)
    for name, (low, high) in parameter_intervals(likelihood(fitted, points), 0.9).items():
        assert low <= fitted.parameters[name] <= high, name


def test_a_floor_that_may_be_absent_has_an_interval_from_zero():
    points = study(decades=1.0, scatter=(0.1, 0.1), truth=dict(STELLAR, E=0.01))
    found = compare(points, ["chinchilla"], replicates=1)
    assert found.law_intervals["E"][0] == 0
    assert "the floor's interval reaches zero" in forecast(found, points.N.max(), points.D.max())["flags"][0]


def test_points_exactly_on_the_law_have_narrow_intervals():
    points = study(scatter=(1e-12, 1e-12))
    found = compare(points, ["chinchilla"], replicates=10, weigh="aicc")
    assert found.law_intervals["alpha"] == pytest.approx((0.75, 0.75), abs=1e-4)
    assert forecast(found, 1e6, 1e6)["high"][0] == pytest.approx(CHINCHILLA.predict(STELLAR, 1e6, 1e6), rel=1e-4)


def test_the_finite_test_set_widens_amplitudes_only():
    points = study()
    known = dataclasses.replace(points, sem=0.03 * points.loss)
    without, found = (compare(each, ["chinchilla"], replicates=1) for each in (points, known))
    assert found.evaluation == pytest.approx(0.03)
    for name in ("alpha", "beta"):
        assert found.law_intervals[name] == without.law_intervals[name]
    for name in ("E", "A", "B"):
        value, (low, high) = found.law.parameters[name], without.law_intervals[name]
        common = 1.6449 * 0.03
        expected = np.exp([-np.hypot(np.log(value / low), common), np.hypot(np.log(high / value), common)])
        assert np.array(found.law_intervals[name]) / value == pytest.approx(expected, rel=1e-4)
    pd.testing.assert_frame_equal(forecast(found, 1e5, 1e5), forecast(without, 1e5, 1e5))


def test_five_points_have_the_wide_interval_they_deserve():
    found = compare(ONE_CURVE, ["m2"], replicates=50)
    low, high = found.law_intervals["beta"]
    assert low < 0.97 < high
    assert 0.05 < high - low < 0.5  # of two degrees of freedom
    assert found.law_intervals["E"][0] < 0.360 < found.law_intervals["E"][1]
    wide = forecast(found, 1.0, 4e6).iloc[0]
    assert wide["low"] <= wide["curve_low"] < wide["value"] < wide["curve_high"] <= wide["high"]
    assert np.isfinite(found.bootstrap.draws["m2"]).all()


def test_the_same_seed_gives_the_same_replicates():
    points = study()
    first, second, other = (
        compare(points, ["chinchilla", "gamma"], replicates=30, seed=seed).bootstrap for seed in (3, 3, 4)
    )
    assert np.array_equal(first.draws["gamma"], second.draws["gamma"])
    assert not np.array_equal(first.draws["gamma"], other.draws["gamma"])
    assert (first.chosen == second.chosen).all()


def test_seeds_of_a_cell_are_drawn_together():
    """Two equal runs a cell give the replicates of one."""
    points = study()
    twice = points.take(np.repeat(np.arange(len(points)), 2))
    for objective in ("lsq", "huber"):
        once, double = (
            compare(each, ["chinchilla"], objective=objective, replicates=20).bootstrap.draws["chinchilla"]
            for each in (points, twice)
        )
        assert double[:, 2] == pytest.approx(once[:, 2], rel=1e-3)


def test_bootstrap_and_profile_agree_where_cells_are_many():
    points = study(seeds=2)
    found = compare(points, ["chinchilla"], replicates=500)
    for place, name in enumerate(CHINCHILLA.parameters):
        low, high = found.law_intervals[name]
        sampled = found.bootstrap.interval(found.bootstrap.draws["chinchilla"][:, place])
        assert sampled[1] - sampled[0] == pytest.approx(high - low, rel=0.35), name


@needs_cases
def test_the_reference_intervals_of_the_chinchilla_points():
    """4,000 pairs bootstraps of Huber fits: Besiroglu et al. 2024, arXiv 2404.10102."""
    table = pd.read_csv(CASES / "chinchilla_epoch.csv")
    table = table[~table["dropped_by_reference"]]
    points = Points(N=table["N"].to_numpy(), D=table["D"].to_numpy(), loss=table["loss"].to_numpy())
    found = compare(points, ["chinchilla"], objective="huber", replicates=4000, level=0.95)
    assert found.interval_method == "bootstrap"
    for name, expected in {"alpha": (0.317, 0.373), "beta": (0.331, 0.415), "E": (1.769, 1.871)}.items():
        assert found.law_intervals[name] == pytest.approx(expected, abs=0.003), name


def test_forecasts_name_what_to_beware_of():
    points = study(seeds=2, scatter=(0.01, 0.01))
    found = compare(points, ["chinchilla"], replicates=1)
    N, D = points.N.max(), points.D.max()
    table = forecast(found, [N, 4 * N, 5 * N], [D, D, points.D.min() / 8])
    assert table["flags"].tolist()[:2] == [[], []]
    assert table["flags"][2] == ["N is 5× outside the data", "D is 8× outside the data"]
    assert forecast(found, 5 * N, D)["flags"][0] == ["N is 5× outside the data"]
    assert not table["refused"].any()
    with pytest.raises(UserError, match="D must be a positive number"):
        forecast(found, N, -1.0)


def test_a_law_that_does_not_fit_is_refused_far_outside():
    case = Case(
        name="wrong", form="gamma", truth=dict(STELLAR, alpha=1.3, beta=1.2, A=3.5e3, B=3e3, gamma=0.5), seeds=3
    )
    points = case.study(np.random.default_rng(0))
    found = compare(points, ["chinchilla"], replicates=1)
    near, far = (forecast(found, factor * points.N.max(), 1e4).iloc[0] for factor in (2, 10))
    assert any("lack of fit" in words for words in near["flags"])
    assert not near["refused"]
    assert np.isfinite(near["value"])
    assert far["refused"]
    assert np.isnan(far["value"])


def test_robust_forecasts_scatter_as_the_runs_do():
    points = study(seeds=8, scatter=(0.05, 0.05))
    for objective in ("lsq", "huber"):
        found = compare(points, ["chinchilla"], objective=objective, replicates=300)
        cast = forecast(found, 3e4, 1e4).iloc[0]
        assert np.log(cast["high"] / cast["low"]) == pytest.approx(2 * 1.645 * 0.05, rel=0.2), objective


@pytest.mark.parametrize(
    ("decades", "seeds", "scatter"),
    [(2.5, 1, (0.02, 0.02)), (1.0, 2, (0.02, 0.02)), (2.5, 2, (0.01, 0.05)), (1.0, 1, (0.01, 0.05))],
)
def test_intervals_cover_as_often_as_they_say(decades, seeds, scatter):
    """A small part of `benchmarks.coverage`: 60 studies have a standard error of 4 %."""
    case = Case(name=f"test {decades}", form="chinchilla", truth=STELLAR, decades=decades, seeds=seeds, scatter=scatter)
    table = summary(case, [parameters(case, number) for number in range(60)])
    assert table["held"].between(0.78, 0.99).all(), table.to_string()


@pytest.mark.slow
@pytest.mark.parametrize("case", forecast_cases()[1::6], ids=lambda case: case.name)
def test_forecasts_cover_and_the_form_is_found(case):
    table = summary(case, [forecasts(case, number) for number in range(10)]).set_index("quantity")["held"]
    assert table.drop("true form selected").min() > 0.72, table.to_string()
    assert table["true form selected"] >= (0.75 if case.seeds > 1 else 0.55)
