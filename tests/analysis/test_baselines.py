"""Baselines in the analysis: laws of their own, and where the study's models pass them."""

import math
import re

import numpy as np
import pytest

from analysis.answers.baselines import baselines, crossing_with
from analysis.points.trials import best_trials, law_cells
from analysis.report import sections
from analysis.report.document import baseline_document
from analysis.report.figures import Observed, error_against_data
from analysis.report.findings import find
from tests.analysis.conftest import FIXED_NOISE_FIXED_SAMPLES, frame, row, study_rows

DATA = FIXED_NOISE_FIXED_SAMPLES.data
BEST = FIXED_NOISE_FIXED_SAMPLES.mae.min(axis=0)
LAW = 0.12 + 4.0 * DATA.astype(float) ** -0.6


def rows_with(errors, family="ridge", sem=0.0004, **changes):
    """A study on the measured grid, and a baseline of these errors, one a number of spectra."""
    rows = study_rows(FIXED_NOISE_FIXED_SAMPLES, test_mae_sem_dex=sem, **changes)
    for size, error in zip(DATA, errors, strict=True):
        name = f"{family}-{size}"
        facts = {"family": family, "rung": family, "cell": name, "trial": name, "lr": math.nan, "precision": "fp64"}
        facts |= {"num_params": 10 + int(size), "num_spectra": int(size), "test_mae_sem_dex": sem}
        rows.append(row(val_mae_dex=error, test_mae_dex=error, **facts))
    return frame(rows)


def found_in(rows):
    cells = best_trials(rows).cells
    (found,) = baselines(cells, law_cells(cells))
    return found


def test_a_baseline_has_a_data_law_of_its_own():
    found = found_in(rows_with(LAW))
    assert found.problem == ""
    assert found.law.points.axis == "D"
    low, high = found.law.law_intervals["E"]
    assert low - 1e-6 <= 0.12 <= high + 1e-6
    assert found.law.law.law.value(found.law.law.theta, np.log(DATA)[None]) == pytest.approx(LAW, rel=1e-3)
    assert list(found.cells["num_spectra"]) == sorted(DATA)


def test_the_crossing_is_where_the_measured_curves_cross():
    errors = BEST * (DATA / (DATA[2] * 2**0.5)) ** 0.2  # equal half way between the third and the fourth
    found = found_in(rows_with(errors)).crossing
    assert pytest.approx(DATA[2] * 2**0.5, rel=1e-6) == found.D
    assert found.interval[0] <= found.D <= found.interval[1]
    assert found.ratio == pytest.approx(BEST[-1] / errors[-1])
    assert re.search(
        r"beats ridge from about 2,900 spectra on \(90 % interval [\d,]+ to [\d,]+; its error", found.words
    )


def test_where_nothing_crosses_it_says_so():
    always = found_in(rows_with(2 * BEST)).crossing
    assert (always.D, always.interval) == (0.0, (0.0, 0.0))
    assert "at every number of spectra from 512 to 16,384" in always.words
    never = found_in(rows_with(0.5 * BEST)).crossing
    assert (never.D, never.interval) == (math.inf, (math.inf, math.inf))
    assert "not beaten at any number of spectra from 512 to 16,384 (its error at 16,384 is 2.00 times" in never.words


def test_a_baseline_may_also_catch_up():
    found = found_in(rows_with(BEST * (DATA / 3000.0) ** -0.2)).crossing
    assert found.better == "below"
    assert pytest.approx(3000, rel=1e-6) == found.D
    assert found.interval[0] < 3000 < found.interval[1]
    assert "beats ridge up to about 3,000 spectra (90 % interval" in found.words
    for factor, words in ((2.0, "at every number"), (0.4, "is not beaten at any number")):
        assert words in found_in(rows_with(factor * BEST * (DATA / 3000.0) ** -0.05)).crossing.words


def test_the_interval_covers_the_true_crossing_and_widens_with_the_scatter(monkeypatch):
    monkeypatch.setattr("analysis.answers.baselines.DRAWS", 200)
    truth, exponent = 3000.0, 0.15
    rng, inside, widths = np.random.default_rng(4), {0.01: 0, 0.04: 0}, {0.01: [], 0.04: []}
    rows = rows_with(BEST * (DATA / truth) ** exponent, seeds=(0, 1), rates=(1e-3,))
    exact = best_trials(rows).cells
    for scatter in inside:
        for _ in range(200):
            error = exact["test_mae_dex"] * np.exp(scatter * rng.standard_normal(len(exact)))
            cells = exact.assign(test_mae_dex=error)
            found = crossing_with("ridge", law_cells(cells), cells[cells["family"] == "ridge"], 0)
            inside[scatter] += found.interval[0] <= truth <= found.interval[1]
            widths[scatter].append(np.log(min(found.interval[1], 5e4) / max(found.interval[0], 200)))
    assert all(count >= 160 for count in inside.values())
    assert np.mean(widths[0.04]) > 2 * np.mean(widths[0.01])


def test_too_few_numbers_of_spectra_are_no_law_but_a_comparison():
    rows = rows_with(2 * BEST)
    few = rows[(rows["family"] == "specvit") | (rows["num_spectra"] >= DATA[-2])]
    found = found_in(few)
    assert found.law is None
    assert "2 numbers of spectra are too few for a law" in found.problem
    assert "from 8,192 to 16,384" in found.crossing.words


def test_words_table_figure_and_json_include_them():
    found = find(rows_with(BEST * (DATA / 3000.0) ** 0.2, family="lightgbm"), bootstrap=60)
    (line,) = sections.baselines(found)
    assert "beats lightgbm from about 3,000 spectra on" in line["words"]
    assert line["form"]
    assert "best" not in line["parameters"]
    assert sections.run_facts(found)["trials"] == 72  # of the study's own models
    (grid_line,) = [each for each in sections.grid(found.table.cells)["rows"] if each["family"] == "lightgbm"]
    assert grid_line["N"] is None
    assert len([value for value in grid_line["values"] if value]) == len(DATA)
    figure = error_against_data(Observed.from_cells(found.cells), found.fitted, (), found.baselines)
    assert [text.get_text() for text in figure.legends[-1].get_texts()] == ["lightgbm"]
    document = baseline_document(found.baselines[0])
    assert document["crossing"]["D"] == pytest.approx(3000, rel=1e-6)
    assert all(math.isfinite(value) for value in document["law"]["parameters"].values())
