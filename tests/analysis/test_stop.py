"""Why the curve stops: one cause, where the shares separate, and its evidence."""

import pandas as pd
import pytest

from analysis.answers.budget import ErrorBudget
from analysis.answers.stop import why_it_stops
from tests.analysis.test_limit import limit


def budget(**shares):
    """Of an error of 0.2 dex; each part as (low, best, high) of its share."""
    rows = [
        {"term": term, "value": 0.2 * best, "low": 0.2 * low, "high": 0.2 * high}
        | {"share": best, "share_low": low, "share_high": high}
        for term, (low, best, high) in shares.items()
    ]
    return ErrorBudget(N=1e6, D=1e5, form="chinchilla", table=pd.DataFrame(rows), note="")


FLOOR = {"irreducible": (0.5, 0.6, 0.7), "capacity": (0.1, 0.2, 0.3), "data": (0.1, 0.2, 0.3)}


@pytest.mark.parametrize("cause", ["capacity", "data", "irreducible"])
def test_the_largest_part_is_the_cause_where_no_other_overlaps_it(cause):
    shares = dict.fromkeys(FLOOR, (0.1, 0.2, 0.3)) | {cause: (0.5, 0.6, 0.7)}
    found = why_it_stops(budget(**shares))
    assert found.cause == cause
    assert "50 to 70 % of the error at the largest cell" in found.words
    assert found.remedy == (
        "A longer budget (Recipe.budget): it shows whether training sets the floor." if cause == "irreducible" else ""
    )


def test_overlapping_parts_decide_nothing():
    found = why_it_stops(budget(**FLOOR | {"data": (0.1, 0.35, 0.55)}))
    assert found.cause == "undecided"
    assert "10 to 55 %" in found.words
    assert found.remedy == ""
    third = why_it_stops(budget(irreducible=(0.4, 0.5, 0.6), capacity=(0.2, 0.26, 0.3), data=(0.05, 0.24, 0.55)))
    assert (third.cause, "too little data (5 to 55 %" in third.words) == ("undecided", True)


def test_a_floor_that_holds_the_limit_is_the_limit():
    found = why_it_stops(budget(**FLOOR), limit(0.12))
    assert found.cause == "information limit"
    assert "0.120 dex, which the floor's interval holds" in found.words
    assert "signal to noise" in found.remedy


def test_a_floor_below_the_limit_is_a_leak():
    found = why_it_stops(budget(**FLOOR), limit(0.2))
    assert found.cause == "irreducible"
    assert "the floor lies below it: test spectra have leaked" in found.words
    assert found.remedy == ""


def test_a_wide_floor_that_holds_the_limit_decides_nothing_about_it():
    found = why_it_stops(budget(**FLOOR | {"irreducible": (0.5, 0.8, 0.95)}), limit(0.11))
    assert found.cause == "irreducible"
    assert "values up to 73 % above it: whether the spectra or the training set the floor is not decided" in found.words
    assert found.remedy == "A longer budget (Recipe.budget): it shows whether training sets the floor."


def test_a_floor_above_the_limit_is_of_the_recipe():
    found = why_it_stops(budget(**FLOOR), limit(0.05))
    assert found.cause == "irreducible"
    assert "the floor lies 100 to 180 % above it" in found.words
    assert found.remedy == "A longer budget (Recipe.budget) or another recipe: the spectra allow less than the floor."
    small = why_it_stops(budget(**FLOOR | {"irreducible": (0.05, 0.1, 0.15), "data": (0.6, 0.7, 0.8)}), limit(0.02))
    assert small.cause == "data"
    assert "which the floor's interval holds" in small.words


@pytest.mark.parametrize(
    ("above", "sem", "expected", "remedy"),
    [
        (0.08, 0.01, "lowered the error by 7.4 % ± 1.0 %: training longer still pays", "A longer budget"),
        (0.01, 0.01, "no more than chance", "Another recipe"),
        (0.25, None, "lowered the error by 20.0 %: training longer still pays", "A longer budget"),
        (-0.05, 0.01, "training longer does not pay", "Another recipe"),
    ],
)
def test_training_length_is_judged_by_the_last_shorter_budget(above, sem, expected, remedy):
    lines = [{"share": share, "above": above, "sem": sem} for share in (0.25, 0.5, 1.0)]
    found = why_it_stops(budget(**FLOOR), shorter={"cells": 9, "lines": lines})
    assert "Training 2 times as long" in found.words
    assert expected in found.words
    assert found.remedy.startswith(remedy)
