"""From rows to points: the best trial of each cell, and what was left out and why."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.laws import Array
from scaling.errors import UserError
from scaling.study import rows as rows_contract

CELL = ["family", "rung", "num_params", "num_spectra", "seed"]
"""The columns that identify a cell."""

MIN_DISTINCT = 3
"""Fewest distinct values of N, and of D, from which a curve with a floor can be told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CellTable:
    """What `best_trials` makes of a table of rows.

    Attributes:
        cells: one row a cell: all columns of its best trial, with `trials` (finished trials), `learning_rates`
            (distinct ones among them) and `edge_of_search` ("smallest", "largest" or "").
        exclusions: the trials that were not used, with `reason` in words.
    """

    cells: pd.DataFrame
    exclusions: pd.DataFrame


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """Checked input of a fit.

    Attributes:
        N: model sizes (n,), positive; ones where the table has none.
        D: numbers of distinct spectra (n,), positive; ones where the table has none.
        loss: what is fitted (n,), positive.
        S: samples seen in training (n,), or None where the table does not say.
        sem: standard error of each loss from the finite test set (n,), in the loss's unit, or None.
        warnings: in words.
    """

    N: Array
    D: Array
    loss: Array
    S: Array | None = None
    sem: Array | None = None
    warnings: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.loss)

    @property
    def axis(self) -> str:
        """Which of N and D vary: "ND", "N" or "D"; "" if neither does."""
        return "".join(name for name, values in (("N", self.N), ("D", self.D)) if np.ptp(values) > 0)

    @property
    def groups(self) -> NDArray[np.intp]:
        """The number of each run's cell (n,): runs of one cell share N, D and S."""
        places = np.stack([self.N, self.D] + ([] if self.S is None else [self.S]))
        return np.unique(places, axis=1, return_inverse=True)[1].ravel()

    def logs(self, variables: tuple[str, ...]) -> Array:
        """The natural logarithms (v, n) of a law's variables.

        Raises:
            UserError: if a variable is not in the table, or a curve of one variable is asked for where both vary.
        """
        if variables == ("x",):
            if self.axis == "ND":
                raise UserError(
                    "table: both N and D vary, but the form is a curve of one variable; keep the rows of one size"
                )
            return np.log(self.N if self.axis == "N" else self.D)[None]
        if "S" in variables and self.S is None:
            raise UserError("table: the form needs the samples seen; name their column with --samples-seen")
        return np.log(np.stack([getattr(self, name) for name in variables]))

    def take(self, chosen: NDArray[np.bool_] | NDArray[np.intp]) -> Points:
        """The points chosen by a mask or by numbers."""
        S, sem = (None if each is None else each[chosen] for each in (self.S, self.sem))
        return Points(N=self.N[chosen], D=self.D[chosen], loss=self.loss[chosen], S=S, sem=sem, warnings=self.warnings)


def is_row_table(frame: pd.DataFrame) -> bool:
    """Whether a table has the columns of the results row."""
    return set(rows_contract.schema().names) <= set(frame.columns)


def best_trials(rows: pd.DataFrame) -> CellTable:
    """Choose the trial with the smallest validation MAE in each cell (family, rung, N, D, seed).

    Another learning rate of the same cell is not an exclusion: it lost the selection it was made for. A trial that
    diverged, failed or left no metric is one.

    Args:
        rows: a table of `scaling.study.rows.Row`.

    Raises:
        UserError: if columns are missing, or finished rows differ in `eval_pin` or `label`, which makes their errors
            incomparable.
    """
    missing = sorted(set(rows_contract.schema().names) - set(rows.columns))
    if missing:
        raise UserError(f"table: the columns {', '.join(missing)} are missing; give a results table of a study")
    usable = (
        (rows["status"] == "done")
        & np.isfinite(rows["val_mae_dex"].astype(float))
        & (rows["test_mae_dex"].astype(float) > 0)
    )
    finished = rows[usable]
    for column, why in (("eval_pin", "scored on different spectra or noise"), ("label", "of different labels")):
        values = sorted(finished[column].astype(str).unique())
        if len(values) > 1:
            raise UserError(
                f"table: column {column} holds {', '.join(values)}: errors {why} do not compare; keep the rows of one"
            )
    groups = finished.sort_values(["val_mae_dex", "trial"], kind="stable").groupby(CELL, sort=True, dropna=False)
    cells = groups.head(1).sort_values(CELL).reset_index(drop=True)
    facts = [_search_facts(group) for _, group in groups]
    for name in ("trials", "learning_rates", "edge_of_search"):
        cells[name] = [fact[name] for fact in facts]
    return CellTable(cells=cells, exclusions=_exclusions(rows[~usable], finished))


def _search_facts(trials: pd.DataFrame) -> dict[str, object]:
    """How a cell was searched. `trials`: its finished trials, best first."""
    rates = np.sort(trials["lr"].unique())
    best = trials["lr"].iloc[0]
    edge = ""
    if len(rates) >= 3:
        edge = "smallest" if best == rates[0] else "largest" if best == rates[-1] else ""
    return {"trials": len(trials), "learning_rates": len(rates), "edge_of_search": edge}


def _exclusions(unused: pd.DataFrame, finished: pd.DataFrame) -> pd.DataFrame:
    done = set(finished[CELL].itertuples(index=False, name=None))
    reasons = []
    for row in unused[[*CELL, "status", "error"]].itertuples(index=False, name=None):
        *cell, status, error = row
        told = f": {error}" if isinstance(error, str) and error else ""
        reason = f"{status}{told}" if status != "done" else "finished without a usable validation and test MAE"
        reasons.append(reason if tuple(cell) in done else f"{reason}; its cell has no finished trial")
    return unused.assign(reason=reasons).reset_index(drop=True)


def law_cells(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells that a law is fitted to: those of the family "specvit", or of the only family there is.

    Raises:
        UserError: if there are several families and none is "specvit", or no cell at all.
    """
    families = sorted(cells["family"].unique())
    if not families:
        raise UserError("table: no cell has a finished trial; see the excluded trials and run the study again")
    if "specvit" not in families and len(families) > 1:
        raise UserError(f"table: column family holds {', '.join(families)}; keep the rows of one to fit a law")
    return cells[cells["family"] == ("specvit" if "specvit" in families else families[0])].reset_index(drop=True)


def points_from_cells(cells: pd.DataFrame) -> Points:
    """The points of a law: each cell's N (`num_params`), D (`num_spectra`) and test MAE in dex.

    Raises:
        UserError: as `points_from_columns`.
    """
    return points_from_columns(cells, "num_params", "num_spectra", "test_mae_dex")


def points_from_columns(frame: pd.DataFrame, n: str, d: str, loss: str) -> Points:
    """Points from three named columns of any table.

    Args:
        frame: the table.
        n: name of the column of model sizes.
        d: name of the column of data sizes.
        loss: name of the column that is fitted.

    Raises:
        UserError: if a column is missing, not numeric, NaN or not positive, or has too few distinct sizes.
    """
    values = {}
    for column in (n, d, loss):
        if column not in frame.columns:
            known = ", ".join(map(str, frame.columns))
            raise UserError(f"table: no column {column!r} (there are: {known}); name the columns with --n, --d, --loss")
        numbers = pd.to_numeric(frame[column], errors="coerce").to_numpy(float)
        wrong = np.flatnonzero(~(np.isfinite(numbers) & (numbers > 0)))
        if len(wrong):
            raise UserError(
                f"table: column {column!r}, row {wrong[0]}: {frame[column].iloc[wrong[0]]!r} is not a positive number "
                f"({len(wrong)} such rows); correct or remove them"
            )
        values[column] = numbers
    warnings = []
    for column in (n, d):
        distinct = np.unique(values[column])
        if len(distinct) < MIN_DISTINCT:
            raise UserError(
                f"table: column {column!r} holds too few distinct sizes for a law ({len(distinct)}, at least "
                f"{MIN_DISTINCT} are needed); add some"
            )
        if distinct[-1] < 10 * distinct[0]:
            warnings.append(f"{column} spans a factor of {distinct[-1] / distinct[0]:.1f}, less than one decade")
    return Points(N=values[n], D=values[d], loss=values[loss], warnings=warnings)
