"""Which forms compete, which is selected, and what is said when none can be."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.answers.forecast import forecast
from analysis.fitting.fit import fit
from analysis.fitting.likelihood import at_bound
from analysis.fitting.selection import PARSIMONY, aicc, akaike_weights, selected
from analysis.intervals.compare import NoLawError, compare, suitable_forms
from analysis.laws import CHINCHILLA, CURVES, LAWS, SELECTABLE
from analysis.points.table import Points
from benchmarks.coverage import STELLAR, TRUTHS, Case
from scaling.errors import UserError


def study(form="chinchilla", seed=0, **changes):
    case = Case(**({"name": "test", "form": form, "truth": TRUTHS[form], "seeds": 2} | changes))
    return case.study(np.random.default_rng(seed))


@pytest.mark.parametrize("form", TRUTHS)
def test_the_true_form_is_selected_in_most_studies(form):
    """A small part of `benchmarks.coverage`."""
    found = [compare(study(form, seed)).best for seed in range(4)]
    assert found.count(form) >= 3, found


def test_weights_add_up_and_follow_the_score():
    weights = akaike_weights({"a": -10.0, "b": -8.0, "c": float("inf")})
    assert sum(weights.values()) == pytest.approx(1)
    assert weights["a"] / weights["b"] == pytest.approx(np.e)
    assert weights["c"] == 0


@given(st.lists(st.floats(-300, 300), min_size=3, max_size=3))
@settings(max_examples=60, deadline=None)
def test_the_simplest_form_near_the_best_is_selected(values):
    scores = dict(zip(("gamma", "chinchilla", "tied"), values, strict=True))
    best = selected({form: np.array([score]) for form, score in scores.items()})[0]
    near = [form for form, score in scores.items() if score <= min(values) + PARSIMONY]
    assert best in near
    assert all(len(LAWS[form].parameters) >= len(LAWS[best].parameters) for form in near)


def test_of_forms_with_equally_many_parameters_the_better_is_selected():
    assert selected({"chinchilla": np.array([-10.0, -13.0]), "kaplan": np.array([-11.0, -11.0])}).tolist() == [
        "kaplan",
        "chinchilla",
    ]


def test_seeds_are_no_further_evidence_for_a_form():
    """AICc counts cells: the same runs twice over add a constant that no form gains by."""
    points = study(seeds=1)
    twice = points.take(np.repeat(np.arange(len(points)), 2))
    differences = []
    for each in (points, twice):
        scores = {form: aicc(fit(LAWS[form], each), each) for form in ("chinchilla", "kaplan")}
        differences.append(scores["kaplan"] - scores["chinchilla"])
    assert differences[0] == pytest.approx(differences[1], rel=1e-6)


def test_forms_are_compared_by_one_likelihood_where_delta_lies_between_their_residuals():
    points, forms = study("kaplan"), ("chinchilla", "kaplan")
    closest = {form: np.median(np.abs(fit(LAWS[form], points).residuals)) for form in forms}
    delta = 0.02
    assert closest["kaplan"] < delta < closest["chinchilla"]
    found = compare(points, forms, objective="huber", delta=delta)
    assert found.best == "kaplan"
    cells = int(points.groups.max()) + 1
    ratio = np.log(found.fits["chinchilla"].value / found.fits["kaplan"].value)
    assert found.aicc["chinchilla"] - found.aicc["kaplan"] == pytest.approx(cells * ratio)


def test_a_parameter_at_its_bound_but_for_rounding_stands_at_it():
    law = LAWS["chinchilla"]
    upper = np.array(law.upper)
    bounded = np.isfinite(upper) & (upper > 0)
    theta = np.where(bounded, np.nextafter(upper, 0), 1e-3)
    assert bounded.any()
    assert at_bound(law, theta).tolist() == bounded.tolist()


def test_the_forms_that_compete_suit_the_points():
    both = study(seeds=1)
    line = both.take(both.N[0] == both.N)
    assert suitable_forms(both) == SELECTABLE
    assert set(suitable_forms(line)) <= set(CURVES)
    assert suitable_forms(dataclasses.replace(both, S=both.D)) == SELECTABLE
    assert "data_constrained" in suitable_forms(dataclasses.replace(both, S=np.full(len(both), 1e6)))


def test_only_squares_of_logarithms_are_weighted_by_the_scatter_of_seeds():
    points = study(seeds=4, scatter=(0.005, 0.05))
    found = {objective: compare(points, ["chinchilla"], objective=objective) for objective in ("lsq", "linear")}
    assert np.ptp(found["lsq"].law.weights) > 0
    assert np.ptp(found["linear"].law.weights) == 0
    assert found["lsq"].scatter.words.endswith("runs are weighted by its inverse.")


def test_every_objective_selects_and_has_intervals():
    points = study(seeds=2)
    for objective, method in {"lsq": "profile", "linear": "profile", "huber": "bootstrap", "l1": "bootstrap"}.items():
        found = compare(points, ["chinchilla", "tied", "kaplan"], objective=objective, replicates=100)
        assert found.best == "chinchilla", objective
        assert found.interval_method == method
        low, high = found.intervals["chinchilla"]["alpha"]
        assert low < STELLAR["alpha"] < high
        assert set(found.bootstrap.chosen) <= {"chinchilla", "tied", "kaplan"}
        assert np.mean(found.bootstrap.chosen == "chinchilla") > 0.5


def test_a_curve_of_one_variable_is_compared_over_what_varies():
    both = study(seeds=1)
    for axis in ("N", "D"):
        fixed = both.D if axis == "N" else both.N
        found = compare(both.take(fixed == fixed.max()), replicates=50)
        assert found.best == "m2"
        exponent = STELLAR["alpha" if axis == "N" else "beta"]
        low, high = found.law_intervals["beta"]
        assert low < exponent < high


def test_a_form_with_two_degrees_of_freedom_left_may_be_selected():
    """Five points with a plain floor."""
    x = np.array([5e4, 1e5, 2e5, 5e5, 1e6])
    found = compare(Points(N=np.ones(5), D=x, loss=np.array([0.5754, 0.4716, 0.4150, 0.3831, 0.3720])))
    assert found.best == "m2"
    assert not np.isfinite(found.aicc["m3"])


def test_points_that_support_no_law_say_why():
    points = study(seeds=1)
    few = Points(N=points.N[:6], D=points.D[:6], loss=np.linspace(0.5, 0.3, 6))
    with pytest.raises(NoLawError, match="4 points support no law") as raised:
        compare(points.take(np.array([0, 1, 6, 7])))
    assert set(raised.value.fits) == set(SELECTABLE)
    assert "cannot determine" in str(raised.value)
    assert compare(few).points.axis == "D"  # six sizes of D support a curve


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"forms": ["cubic"]}, "form 'cubic' is unknown"),
        ({"forms": []}, "is unknown"),
        ({"level": 90}, "level 90"),
        ({"replicates": 0}, "replicates 0"),
        ({"forms": ["m2"]}, "curve of one variable"),
        ({"forms": ["data_constrained"]}, "samples seen"),
        ({"points": Points(N=np.ones(6), D=np.ones(6), loss=np.ones(6))}, "neither N nor D varies"),
    ],
)
def test_impossible_requests_are_named(changes, word):
    with pytest.raises(UserError, match=word):
        compare(**({"points": study(seeds=1)} | changes))


def test_three_sizes_support_no_curve():
    with pytest.raises(NoLawError, match="support no law"):
        compare(Points(N=np.ones(3), D=np.array([1e3, 1e4, 1e5]), loss=np.array([3.0, 2.0, 1.5])))


def test_the_estimate_does_not_depend_on_what_else_competes():
    points = study()
    alone = compare(points, [CHINCHILLA.name]).law
    assert compare(points).fits[CHINCHILLA.name].parameters == alone.parameters


def test_forms_that_all_fit_exactly_leave_the_simplest():
    assert compare(study(seeds=1, scatter=(1e-13, 1e-13))).best == "chinchilla"


def test_repeated_data_compete_where_the_samples_seen_differ_from_the_spectra():
    points = study(seeds=1)
    known = dataclasses.replace(points, S=np.full(len(points), points.D.max()))
    found = compare(known, ["chinchilla", "data_constrained"], replicates=20)
    seen = forecast(found, 1e5, 1e5)  # all runs saw equally many: so will the next
    pd.testing.assert_frame_equal(seen, forecast(found, 1e5, 1e5, points.D.max()))
    varied = dataclasses.replace(points, S=points.D * np.linspace(1, 3, len(points)))
    with pytest.raises(UserError, match="needs the samples seen"):
        forecast(compare(varied, ["data_constrained"]), 1e5, 1e5)
