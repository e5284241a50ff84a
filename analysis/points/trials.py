"""Points from the rows of a study: the best trial of each cell, and the excluded trials with reasons."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis.points.limit import Limit, law_floor, require_same_spectra
from analysis.points.table import Points, points_from_columns
from scaling import results as rows_contract
from scaling.errors import UserError
from scaling.results import ERROR_RATE, Measure, measure_of

CELL = ["study", "family", "rung", "num_params", "num_spectra", "seed", "budget_share"]
"""Columns that identify a cell; results at a share of the budget are separate cells (`analysis.points.branches`)."""

_RULES = (
    ("eval_pin", "scored on different spectra or noise"),
    ("label", "of different labels"),
    ("noise", "of runs that drew their noise differently"),
    ("budget", "of runs whose length was set in different ways"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CellTable:
    """Result of `best_trials`.

    Attributes:
        cells: One row per cell: all columns of its best trial, with `trials` (finished trials), `learning_rates`
            (distinct ones among them) and `edge_of_search` ("smallest", "largest" or "").
        exclusions: The unused trials, with a `reason` as text.
        warnings: Warnings about the table, as text.
    """

    cells: pd.DataFrame
    exclusions: pd.DataFrame
    warnings: list[str]


def is_row_table(frame: pd.DataFrame) -> bool:
    """Whether a table has the columns of the results row."""
    return set(rows_contract.schema().names) <= set(frame.columns)


def require_columns(rows: pd.DataFrame) -> None:
    """Check that a table consists of results rows.

    Raises:
        UserError: Names the missing columns.
    """
    missing = sorted(set(rows_contract.schema().names) - set(rows.columns))
    if missing:
        raise UserError(f"table: the columns {', '.join(missing)} are missing; give a results table of a study")


def best_trials(rows: pd.DataFrame) -> CellTable:
    """Choose the trial with the smallest validation error in each cell (see `CELL`).

    Errors are MAEs, or error rates for a classification (`scaling.results.measure_of`).

    Other learning rates of the same cell are not exclusions, pruned or not: they lost the selection. Trials that diverged,
    failed or have no metric are.

    Args:
        rows: A table of `scaling.results.Row`, of one study or of several with the same rules.

    Raises:
        UserError: Columns are missing, or finished rows differ in `eval_pin`, `label`, `noise` or `budget`, so that
            their errors are not comparable.
    """
    require_columns(rows)
    copies = rows.duplicated()
    rows = rows[~copies]
    measure = measure_of(rows)
    usable = (
        (rows["status"] == "done")
        & np.isfinite(rows[measure.val].astype(float))
        & (rows[measure.test].astype(float) > 0)
    )
    finished = rows[usable]
    warnings = [f"{copies.sum()} rows are copies of another and count once"] if copies.any() else []
    warnings += _check_rules(finished)
    groups = finished.sort_values([measure.val, "trial"], kind="stable").groupby(CELL, sort=True, dropna=False)
    cells = groups.head(1).sort_values(CELL).reset_index(drop=True)
    pruned = rows["status"] == "pruned"
    tried = rows.assign(usable=usable)[usable | pruned | (rows["status"] == "diverged")]
    searched = tried.sort_values([measure.val, "trial"], kind="stable").groupby(CELL, sort=True, dropna=False)
    facts = [_search_facts(group[group["usable"]], group["lr"]) for _, group in searched if group["usable"].any()]
    for name in ("trials", "learning_rates", "edge_of_search"):
        cells[name] = [fact[name] for fact in facts]
    return CellTable(cells=cells, exclusions=_exclusions(rows[~usable & ~pruned], finished, measure), warnings=warnings)


def _check_rules(finished: pd.DataFrame) -> list[str]:
    """Reject rows whose errors are not comparable; warn about smaller differences in their rules."""
    for column, why in _RULES:
        studies = finished["study"].astype(str).groupby(finished[column].astype(str)).unique()
        if len(studies) > 1:
            held = ", ".join(f"{value} (study {', '.join(sorted(names))})" for value, names in studies.items())
            raise UserError(f"table: column {column} holds {held}: errors {why} do not compare; keep the rows of one")
    warnings = []
    for name, family in finished.groupby("family"):
        precisions = sorted(family["precision"].astype(str).unique())
        if len(precisions) == 1:
            continue
        warnings.append(f"the rows of {name} were trained in different precisions ({', '.join(precisions)})")
    seen = finished["samples_seen"] / (finished["num_spectra"] if "epochs" in set(finished["budget"]) else 1)
    if finished["study"].nunique() > 1 and seen.max() > 1.05 * seen.min():
        unit = "epochs" if "epochs" in set(finished["budget"]) else "samples"
        warnings.append(
            f"the studies trained for different numbers of {unit} ({seen.min():.4g} to {seen.max():.4g}), which only "
            "the form data_constrained tells apart"
        )
    return warnings


def _search_facts(trials: pd.DataFrame, tried: pd.Series) -> dict[str, object]:
    """Facts on a cell's search: finished `trials`, best first, and all rates `tried`, even if pruned or diverged."""
    rates = np.sort(tried.unique())
    best = trials["lr"].iloc[0]
    edge = ""
    if len(rates) >= 3:
        edge = "smallest" if best == rates[0] else "largest" if best == rates[-1] else ""
    return {"trials": len(trials), "learning_rates": len(rates), "edge_of_search": edge}


def _exclusions(unused: pd.DataFrame, finished: pd.DataFrame, measure: Measure) -> pd.DataFrame:
    done = set(finished[CELL].itertuples(index=False, name=None))
    reasons = []
    for row in unused[[*CELL, "status", "error"]].itertuples(index=False, name=None):
        *cell, status, error = row
        because = f": {error}" if isinstance(error, str) and error else ""
        useless = f"finished without a usable validation and test {measure.name}"
        reason = f"{status}{because}" if status != "done" else useless
        reasons.append(reason if tuple(cell) in done else f"{reason}; its cell has no finished trial")
    return unused.assign(reason=reasons).reset_index(drop=True)


def law_cells(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells that a law is fitted to: those of the family "specvit", or of the only family present.

    Raises:
        UserError: There are several families and none is "specvit", or there is no cell.
    """
    families = sorted(cells["family"].unique())
    if not families:
        raise UserError("table: no cell has a finished trial; see the excluded trials and run the study again")
    if "specvit" not in families and len(families) > 1:
        raise UserError(f"table: column family holds {', '.join(families)}; keep the rows of one to fit a law")
    return cells[cells["family"] == ("specvit" if "specvit" in families else families[0])].reset_index(drop=True)


def largest_cell(cells: pd.DataFrame) -> pd.Series:
    """The cell with the largest N·D among those that have run."""
    return cells.loc[(cells["num_params"].astype(float) * cells["num_spectra"].astype(float)).idxmax()]


def points_from_cells(
    cells: pd.DataFrame,
    n: str | None = None,
    d: str | None = None,
    loss: str | None = None,
    limit: Limit | None = None,
) -> Points:
    """The points of a law: each cell's N (`num_params`), D (`num_spectra`), samples seen and test error.

    Args:
        cells: Cells from `best_trials`.
        n: Another column for N.
        d: Another column for D.
        loss: Another column for the loss; then its standard error is unknown, and no limit applies.
        limit: The information limit of the test spectra, the lower bound on the floor of every law.

    Raises:
        UserError: See `points_from_columns`; or the limit is for other spectra.
    """
    require_same_spectra(cells, limit)
    sem, measure = error_sem(cells), measure_of(cells)
    points = points_from_columns(
        cells.assign(error_sem=sem),
        n or "num_params",
        d or "num_spectra",
        loss or measure.test,
        samples_seen="samples_seen" if d is None else None,
        sem="error_sem" if loss is None and bool(np.all(sem > 0)) else None,
    )
    if limit is None or loss is not None or measure is ERROR_RATE:
        return points
    floor = law_floor(limit, cells[measure.test], sem)
    lowest = float(cells[measure.test].min())
    if lowest < floor:
        points.warnings.append(
            f"a test {measure.name} of {lowest:.4g} lies below the information limit {limit.mae_dex:.4g}, by more than chance allows: the "
            "test spectra have leaked into training, or the limit is not of these spectra"
        )
        floor = 0.0
    return replace(points, floor=floor)


def error_sem(cells: pd.DataFrame) -> pd.Series:
    """Standard error of each cell's test error from the finite test set; sqrt(p(1 − p)/n) for an error rate p of n.

    For an error rate averaged over several noise draws this is an upper bound.
    """
    if measure_of(cells) is ERROR_RATE:
        rate = cells["test_error_rate"].astype(float)
        return (rate * (1 - rate) / cells["num_test"]) ** 0.5
    return cells["test_mae_sem_dex"].astype(float)
