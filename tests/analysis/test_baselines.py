"""Baselines in the analysis: laws of their own, and where the study's models pass them."""

import json
import math
import re

import numpy as np
import pandas as pd
import pytest

from analysis.answers.baselines import baselines
from analysis.points.trials import best_trials, law_cells
from analysis.report.page import write_report
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
    assert "not beaten up to 16,384 spectra (its error at 16,384 is 2.00 times" in never.words


def test_the_interval_covers_the_true_crossing_and_widens_with_the_scatter():
    truth, exponent = 3000.0, 0.15
    rng, inside, widths = np.random.default_rng(4), {0.01: 0, 0.04: 0}, {0.01: [], 0.04: []}
    for scatter in inside:
        for _ in range(40):
            rows = rows_with(BEST * (DATA / truth) ** exponent * np.exp(scatter * rng.standard_normal(len(DATA))))
            own = rows["family"] == "specvit"
            runs = rows[own & (rows["lr"] == 1e-3)].copy()
            again = runs.assign(seed=1, trial=runs["trial"] + "again", cell=runs["cell"] + "again")
            every = [
                each.assign(test_mae_dex=each["test_mae_dex"] * np.exp(scatter * rng.standard_normal(len(each))))
                for each in (runs, again)
            ]
            found = found_in(pd.concat([*every, rows[~own]], ignore_index=True)).crossing
            inside[scatter] += found.interval[0] <= truth <= found.interval[1]
            widths[scatter].append(np.log(min(found.interval[1], 5e4) / max(found.interval[0], 200)))
    assert all(count >= 32 for count in inside.values())
    assert np.mean(widths[0.04]) > 2 * np.mean(widths[0.01])


def test_too_few_numbers_of_spectra_are_no_law_but_a_comparison():
    rows = rows_with(2 * BEST)
    few = rows[(rows["family"] == "specvit") | (rows["num_spectra"] >= DATA[-2])]
    found = found_in(few)
    assert found.law is None
    assert "2 numbers of spectra are too few for a law" in found.problem
    assert "from 8,192 to 16,384" in found.crossing.words


def test_page_figure_and_json_tell_of_them(tmp_path):
    rows = rows_with(BEST * (DATA / 3000.0) ** 0.2, family="lightgbm")
    page = write_report(rows, tmp_path / "report", bootstrap=60).read_text()
    page = re.sub(r"base64,[^\"]*", "", page)
    assert "Does a Transformer pay?" in page
    assert page.count("beats lightgbm from about 3,000 spectra on") == 2  # in the answer, and in its table
    assert "Grey: baselines" in page
    assert (
        page.count('<td class="text">lightgbm</td>') == 3
    )  # one line of the grid, with family and rung, and the table
    assert "72 trials" in page  # of the study's own models
    (found,) = json.loads((tmp_path / "report" / "fit.json").read_text())["baselines"]
    assert found["family"] == "lightgbm"
    assert found["crossing"]["D"] == pytest.approx(3000, rel=1e-6)
    assert all(math.isfinite(value) for value in found["law"]["parameters"].values())
