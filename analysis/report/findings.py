"""Results of the analysis of a table: laws with and without the held-out cells, and the answers derived from them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from analysis.answers.allocation import Path, compute_optimal, no_path
from analysis.answers.backtest import Backtest, HeldOut, backtests, held_out_score
from analysis.answers.baselines import Baseline, baselines
from analysis.answers.budget import ErrorBudget, error_budget, what_would_it_buy
from analysis.answers.checks import residual_trends
from analysis.answers.isoflop import IsoFlop, planned_profiles
from analysis.answers.next_runs import next_runs, run_hours
from analysis.answers.rates import RateLaw, learning_rate_law
from analysis.answers.stop import Stop, why_it_stops
from analysis.intervals.compare import Comparison, compare
from analysis.points.branches import shorter_budgets, whole_budgets
from analysis.points.cost import Cost, study_cost
from analysis.points.limit import Limit, require_same_spectra
from analysis.points.table import Points
from analysis.points.trials import CellTable, best_trials, largest_cell, law_cells, points_from_cells
from scaling.errors import UserError
from scaling.results import measure_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Answers from the fit to all cells, at the largest cell.

    Attributes:
        N: Its model size.
        D: Its number of spectra.
        S: Its samples seen; None if all cells have the same number of them, or of epochs.
        budget: The parts of the error there; None if the law cannot be split.
        stop: Why the curve stops there; None without a budget.
        gains: The gains from more data, a larger model and more compute.
        cost: The definition of compute.
        path: The compute-optimal path, or None with the reason in `no_path`.
        no_path: Why there is no path, or "".
        isoflop: The best size at each compute budget without a law, if the runs were planned at budgets; else None.
        next_runs: The runs that would narrow the forecast of the last of `gains` most per device-hour, the
            best first; None if the cost of a run is unknown.
    """

    N: float
    D: float
    S: float | None
    budget: ErrorBudget | None
    stop: Stop | None
    gains: pd.DataFrame
    cost: Cost
    path: Path | None
    no_path: str
    isoflop: IsoFlop | None
    next_runs: pd.DataFrame | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """All results that a report presents.

    Attributes:
        given: The results table.
        rows: The rows that the rest is based on: those of whole budgets.
        shorter: Results of shorter budgets, see `shorter_budgets`; None without them.
        table: Its cells and exclusions.
        cells: Cells of the law's family.
        fitted: The fit to the cells that were not held out, or None with a `problem`.
        final: The fit to all cells, or None.
        score: The score of `fitted` on the held-out cells, or None without such cells.
        backtests: Forecasts of the larger cells from the smaller ones, over all cells.
        trends: Trends of the residuals of `fitted` over N and D, or None.
        answers: Answers from `final`, or None.
        baselines: The other families.
        rates: The learning-rate law, or None.
        problem: Why there is no law, or "".
    """

    given: pd.DataFrame
    rows: pd.DataFrame
    shorter: dict[str, Any] | None
    table: CellTable
    cells: pd.DataFrame
    fitted: Comparison | None
    final: Comparison | None
    score: HeldOut | None
    backtests: list[Backtest]
    trends: pd.DataFrame | None
    answers: Answers | None
    baselines: list[Baseline]
    rates: RateLaw | None
    problem: str

    @property
    def held(self) -> int:
        """Number of cells of the law's family that were held out of the fit."""
        return int(self.cells["held_out"].astype(bool).sum())


def find(rows: pd.DataFrame, *, bootstrap: int = 1000, seed: int = 0, limit: Limit | None = None) -> Findings:
    """Fit without the held-out cells, score the forecast of those, refit to all cells, and derive the answers.

    Args:
        rows: A table of `scaling.results.Row`.
        bootstrap: Number of bootstrap refits per form.
        seed: Seed of the bootstrap.
        limit: The information limit of the test spectra, if known.

    Raises:
        UserError: It is not a results table, or mixes evaluations. A table that supports no law is not an error.
    """
    given, rows = rows, whole_budgets(rows)
    table = best_trials(rows)
    if len(table.cells):
        require_same_spectra(table.cells, limit)
    cells, fitted, final, score, problem = table.cells.iloc[:0], None, None, None, ""
    try:
        cells = law_cells(table.cells)
        held = cells["held_out"].astype(bool)
        fitted = compare(points_from_cells(cells[~held], limit=limit), replicates=bootstrap, seed=seed)
        final = (
            compare(points_from_cells(cells, limit=limit), replicates=bootstrap, seed=seed) if held.any() else fitted
        )
        if held.any():
            score = held_out_score(fitted, _observed(cells[held]))
            score = replace(score, table=score.table.assign(trial=cells["trial"][held].to_numpy()))
    except UserError as error:
        fitted = final = score = None
        problem = str(error).removeprefix("table: ")
    family, shorter = rows[rows["family"].isin(cells["family"])], shorter_budgets(given)
    return Findings(
        given=given,
        rows=rows,
        shorter=shorter,
        table=table,
        cells=cells,
        fitted=fitted,
        final=final,
        score=score,
        backtests=[] if final is None else backtests(final),
        trends=None if fitted is None else residual_trends(fitted),
        answers=None if final is None else _answers(final, cells, limit, shorter),
        baselines=baselines(table.cells, cells, limit=limit, replicates=bootstrap, seed=seed) if len(cells) else [],
        rates=learning_rate_law(family) if len(family) else None,
        problem=problem,
    )


def _observed(cells: pd.DataFrame) -> Points:
    """Cells as points, however few there are."""
    columns = {"N": "num_params", "D": "num_spectra", "loss": measure_of(cells).test, "S": "samples_seen"}
    return Points(**{name: cells[column].to_numpy(float) for name, column in columns.items()})


def _answers(final: Comparison, cells: pd.DataFrame, limit: Limit | None, shorter: dict[str, Any] | None) -> Answers:
    """Answers of the fit to all cells at the largest of them."""
    largest = largest_cell(cells)
    N, D, S = float(largest["num_params"]), float(largest["num_spectra"]), None
    if final.points.samples_vary:
        S = float(largest["samples_seen"])
    cost, hours = study_cost(cells), run_hours(cells)
    gains = what_would_it_buy(final, N, D, S=S, cost=cost)
    budget = error_budget(final, N, D, S)
    target = (float(gains["N"].iloc[-1]), float(gains["D"].iloc[-1]))
    return Answers(
        N=N,
        D=D,
        S=S,
        budget=budget,
        stop=None if budget is None else why_it_stops(budget, limit, shorter, measure_of(cells).unit),
        gains=gains,
        cost=cost,
        path=compute_optimal(final, cost),
        no_path=no_path(final, cost),
        isoflop=planned_profiles(final.points, cost, final.level),
        next_runs=None if hours is None or S is not None else next_runs(final, target, hours),
    )
