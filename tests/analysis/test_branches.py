"""Rows of shorter budgets: cells of their own, outside the law unless it is asked for."""

import dataclasses
import io
import json

import numpy as np
import pandas as pd
import pytest

from analysis.__main__ import _input, _parser, main
from analysis.points.branches import shorter_budgets, whole_budgets
from analysis.points.trials import CELL, best_trials
from analysis.report.page import write_report
from tests.analysis.conftest import FIXED_NOISE_FIXED_SAMPLES, frame, row, study_rows

EXCESS = {0.25: 0.2, 0.5: 0.08}


@pytest.fixture(scope="module")
def whole():
    made = study_rows(FIXED_NOISE_FIXED_SAMPLES, budget_share=1.0, samples_seen=8000, device_seconds=100.0)
    return [dataclasses.replace(each, trial=f"{each.cell}-{each.lr:g}") for each in made]


@pytest.fixture(scope="module")
def branched(whole):
    """The same with two shorter budgets, of which the shortest is best at the largest learning rate."""
    made = list(whole)
    for each in whole:
        for share, excess in EXCESS.items():
            mae = each.test_mae_dex * (1 + excess)
            best_here = share == 0.25 and each.lr == 3e-3
            change = {
                "budget_share": share,
                "samples_seen": int(8000 * share),
                "val_mae_dex": 0.01 if best_here else mae,
                "test_mae_dex": mae,
                "device_seconds": 10.0,
            }
            made.append(dataclasses.replace(each, **change))
    return frame(made)


def test_each_budget_picks_its_own_learning_rate(branched):
    cells = best_trials(branched).cells
    assert {share: set(group["lr"]) for share, group in cells.groupby("budget_share")} == {
        0.25: {3e-3},
        0.5: {1e-3},
        1.0: {1e-3},
    }
    assert not cells.duplicated(CELL).any()


def test_a_trial_costs_what_all_its_budgets_cost(branched, whole):
    rows = whole_budgets(branched)
    assert len(rows) == len(whole)
    assert set(rows["device_seconds"]) == {120.0}
    assert rows["device_seconds"].sum() == branched["device_seconds"].sum()
    twice = pd.concat([branched, branched], ignore_index=True)
    assert set(whole_budgets(twice)["device_seconds"]) == {120.0}


def test_what_shorter_budgets_give(branched, whole):
    found = shorter_budgets(branched)
    assert found["cells"] == FIXED_NOISE_FIXED_SAMPLES.mae.size
    quarter, half, all_of_it = found["lines"]
    at_best, at_largest = FIXED_NOISE_FIXED_SAMPLES.mae.mean(), 1 + 0.3 * np.log10(3.0) ** 2
    assert (quarter["share"], quarter["samples"], all_of_it["share"]) == (0.25, [2000, 2000], 1.0)
    assert quarter["above"] == pytest.approx(1.2 * at_largest - 1)
    assert (half["above"], half["error"]) == (pytest.approx(0.08), pytest.approx(1.08 * at_best))
    assert all_of_it["above"] == 0
    assert half["hours"] == pytest.approx(len(whole) * 10 / 3600)
    assert shorter_budgets(frame(whole)) is None


def test_an_unfinished_trial_or_a_budget_that_failed_leaves_its_cell_out(branched):
    first = branched["cell"] == branched["cell"].iloc[0]
    assert shorter_budgets(branched[~(first & (branched["budget_share"] == 1))])["cells"] == 23
    assert shorter_budgets(frame([row(budget_share=0.25)])) is None


@pytest.mark.usefixtures("no_figures")
def test_the_law_of_a_study_is_that_of_whole_budgets(branched, whole, tmp_path):
    size = FIXED_NOISE_FIXED_SAMPLES.sizes[-1]  # one curve: fewer forms to fit
    branched = branched[branched["num_params"] == size].assign(held_out=False)
    whole = [dataclasses.replace(each, held_out=False) for each in whole if each.num_params == size]
    page = write_report(branched, tmp_path / "branched", bootstrap=20).read_text()
    assert "What shorter budgets give" in page
    assert "+8.0 % ± 0.0 %" in page
    fitted = pd.read_csv(tmp_path / "branched" / "cells.csv").drop(columns="device_seconds")
    expected = pd.read_csv(io.StringIO(best_trials(frame(whole)).cells.to_csv(index=False)))
    pd.testing.assert_frame_equal(fitted, expected.drop(columns="device_seconds"), check_exact=True)
    write_report(frame(whole), tmp_path / "whole", bootstrap=20)
    laws = [json.loads((tmp_path / name / "fit.json").read_text())["forms"] for name in ("branched", "whole")]
    assert laws[0] == laws[1]


@pytest.mark.parametrize(
    ("asked", "points"), [([], 24), (["--samples-seen", "samples_seen"], 72), (["--form", "data_constrained"], 72)]
)
def test_the_command_line_uses_all_budgets_when_it_is_asked(branched, tmp_path, asked, points):
    branched.to_parquet(tmp_path / "results.parquet")
    options = _parser().parse_args(["fit", str(tmp_path / "results.parquet"), "--all", *asked])
    assert len(_input(options)[0]) == points


@pytest.mark.parametrize("option", ["--samples-seen", "--sem"])
def test_a_column_that_a_results_table_has_by_another_name_is_refused(branched, tmp_path, capsys, option):
    branched.to_parquet(tmp_path / "results.parquet")
    assert main(["fit", str(tmp_path / "results.parquet"), option, "tokens"]) == 2
    assert f"{option} tokens: a results table has its own column" in capsys.readouterr().err
