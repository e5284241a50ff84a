"""From rows to points: the best trial of each cell, and what was left out and why."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.laws import Array
from scaling.errors import UserError
from scaling.study import rows as rows_contract

CELL = ["study", "family", "rung", "num_params", "num_spectra", "seed"]
"""The columns that identify a cell."""

MIN_DISTINCT = 3
"""Fewest distinct values of N, and of D, from which a curve with a floor can be told."""

MIN_CELLS = {"ND": 6, "N": 4, "D": 4}
"""Fewest distinct cells, by the axes that vary: two more than the parameters of the smallest form."""

_RULES = (
    ("eval_pin", "scored on different spectra or noise"),
    ("label", "of different labels"),
    ("noise", "of runs that drew their noise differently"),
    ("budget", "of runs whose length was set in different ways"),
)

_SYNONYMS = {
    "n": ("n", "params", "parameters", "num_params", "n_params", "model_size"),
    "d": ("d", "tokens", "samples", "num_spectra", "n_tokens", "training_tokens", "dataset_size", "x"),
    "loss": ("loss", "error", "mae", "test_loss", "val_loss", "test_mae_dex"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CellTable:
    """What `best_trials` makes of a table of rows.

    Attributes:
        cells: one row a cell: all columns of its best trial, with `trials` (finished trials), `learning_rates`
            (distinct ones among them) and `edge_of_search` ("smallest", "largest" or "").
        exclusions: the trials that were not used, with `reason` in words.
        warnings: what to know about the table, in words.
    """

    cells: pd.DataFrame
    exclusions: pd.DataFrame
    warnings: list[str]


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
    """Choose the trial with the smallest validation MAE in each cell (study, family, rung, N, D, seed).

    Another learning rate of the same cell is not an exclusion: it lost the selection it was made for. A trial that
    diverged, failed or left no metric is one.

    Args:
        rows: a table of `scaling.study.rows.Row`, of one study or of several with the same rules.

    Raises:
        UserError: if columns are missing, or finished rows differ in `eval_pin`, `label`, `noise` or `budget`, which
            makes their errors incomparable.
    """
    missing = sorted(set(rows_contract.schema().names) - set(rows.columns))
    if missing:
        raise UserError(f"table: the columns {', '.join(missing)} are missing; give a results table of a study")
    copies = rows.duplicated()
    rows = rows[~copies]
    usable = (
        (rows["status"] == "done")
        & np.isfinite(rows["val_mae_dex"].astype(float))
        & (rows["test_mae_dex"].astype(float) > 0)
    )
    finished = rows[usable]
    warnings = [f"{copies.sum()} rows are copies of another and count once"] if copies.any() else []
    warnings += _check_rules(finished)
    groups = finished.sort_values(["val_mae_dex", "trial"], kind="stable").groupby(CELL, sort=True, dropna=False)
    cells = groups.head(1).sort_values(CELL).reset_index(drop=True)
    facts = [_search_facts(group) for _, group in groups]
    for name in ("trials", "learning_rates", "edge_of_search"):
        cells[name] = [fact[name] for fact in facts]
    return CellTable(cells=cells, exclusions=_exclusions(rows[~usable], finished), warnings=warnings)


def _check_rules(finished: pd.DataFrame) -> list[str]:
    """Refuse rows whose errors do not compare; warn where their rules differ less."""
    for column, why in _RULES:
        studies = finished["study"].astype(str).groupby(finished[column].astype(str)).unique()
        if len(studies) > 1:
            held = ", ".join(f"{value} (study {', '.join(sorted(names))})" for value, names in studies.items())
            raise UserError(f"table: column {column} holds {held}: errors {why} do not compare; keep the rows of one")
    warnings = []
    precisions = sorted(finished["precision"].astype(str).unique())
    if len(precisions) > 1:
        warnings.append(f"the rows were trained in different precisions ({', '.join(precisions)})")
    seen = finished["samples_seen"] / (finished["num_spectra"] if "epochs" in set(finished["budget"]) else 1)
    if finished["study"].nunique() > 1 and seen.max() > 1.05 * seen.min():
        unit = "epochs" if "epochs" in set(finished["budget"]) else "samples"
        warnings.append(
            f"the studies trained for different numbers of {unit} ({seen.min():.4g} to {seen.max():.4g}), which only "
            "the form data_constrained tells apart"
        )
    return warnings


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


def largest_cell(cells: pd.DataFrame) -> pd.Series:
    """The cell with the largest N·D among those that were run."""
    return cells.loc[(cells["num_params"].astype(float) * cells["num_spectra"].astype(float)).idxmax()]


def points_from_cells(cells: pd.DataFrame) -> Points:
    """The points of a law: each cell's N (`num_params`), D (`num_spectra`), samples seen and test MAE in dex.

    Raises:
        UserError: as `points_from_columns`.
    """
    return points_from_columns(
        cells, "num_params", "num_spectra", "test_mae_dex", samples_seen="samples_seen", sem="test_mae_sem_dex"
    )


def column_names(frame: pd.DataFrame, n: str | None, d: str | None, loss: str | None) -> dict[str, str | None]:
    """The columns "n", "d" and "loss": as given, else by their usual names in any case; None where there is none.

    Raises:
        UserError: if there is no column of the loss, or neither of N and D.
    """
    known = {str(column).lower(): str(column) for column in reversed(frame.columns)}
    found = {}
    for name, given in (("n", n), ("d", d), ("loss", loss)):
        found[name] = given or next((known[usual] for usual in _SYNONYMS[name] if usual in known), None)
    if found["loss"] is None or (found["n"] is None and found["d"] is None):
        what = "of the loss; name it with --loss" if found["loss"] is None else "of N or D; name them with --n and --d"
        raise UserError(f"table: no column {what} (there are: {', '.join(map(str, frame.columns))})")
    return found


def points_from_columns(
    frame: pd.DataFrame,
    n: str | None,
    d: str | None,
    loss: str,
    *,
    samples_seen: str | None = None,
    sem: str | None = None,
) -> Points:
    """Points from named columns of any table.

    Rows that repeat another exactly, in these columns and in a column "seed" if there is one, are copies, not new
    runs: they count once, with a warning.

    Args:
        frame: the table.
        n: name of the column of model sizes; None if all runs have the same.
        d: name of the column of data sizes; None if all runs have the same.
        loss: name of the column that is fitted.
        samples_seen: name of the column of samples seen in training.
        sem: name of the column of the standard error of each loss.

    Raises:
        UserError: if a column is missing, not numeric, NaN or not positive, or there are too few distinct sizes.
    """
    named = {"N": n, "D": d, "loss": loss, "S": samples_seen, "sem": sem}
    given = [column for column in named.values() if column is not None]
    if len(set(given)) < len(given):
        raise UserError(f"table: the columns {', '.join(given)} must differ from each other")
    if not len(frame):
        raise UserError("table: it holds no rows; give one with a row for each run")
    values = {name: _positive(frame, column) for name, column in named.items() if column is not None}
    for name in ("N", "D"):
        values.setdefault(name, np.ones(len(frame)))
    copies = _copies(frame, values)
    points = Points(**{name: column[~copies] for name, column in values.items()}, warnings=[])
    if copies.any():
        points.warnings.append(
            f"{copies.sum()} rows repeat another one exactly and count once; if they are repeats that agree by chance, "
            "tell them apart by a column named seed"
        )
    _check_sizes(points, {"N": n or "N", "D": d or "D"})
    if np.ptp(points.loss) == 0:
        points.warnings.append(f"all values of {loss} are equal, so that no form can be told from another")
    return points


def _positive(frame: pd.DataFrame, column: str) -> Array:
    """A column as positive numbers (n,)."""
    if column not in frame.columns:
        known = ", ".join(map(str, frame.columns))
        raise UserError(f"table: no column {column!r} (there are: {known}); name the columns with --n, --d, --loss")
    numbers = pd.to_numeric(frame[column], errors="coerce").to_numpy(float, na_value=np.nan)
    wrong = np.flatnonzero(~(np.isfinite(numbers) & (numbers > 0)))
    if len(wrong):
        raise UserError(
            f"table: column {column!r}, row {wrong[0]} (counted from 0): {frame[column].iloc[wrong[0]]!r} is not a "
            f"positive number ({len(wrong)} such rows); correct or remove them"
        )
    return numbers


def _copies(frame: pd.DataFrame, values: dict[str, Array]) -> NDArray[np.bool_]:
    """Which rows repeat an earlier one in all these values, and in the columns "seed" and "study" of the table."""
    identity = pd.DataFrame(values)
    for column in frame.columns:
        if str(column).lower() in ("seed", "study"):
            identity[f"column {column}"] = frame[column].to_numpy()
    return identity.duplicated().to_numpy()


def _check_sizes(points: Points, columns: dict[str, str]) -> None:
    """Refuse too few sizes or cells; warn of short ranges."""
    if not points.axis:
        raise UserError("table: neither N nor D varies; a law needs at least three sizes of one of them")
    for name in points.axis:
        distinct = np.unique(getattr(points, name))
        if len(distinct) < MIN_DISTINCT:
            raise UserError(
                f"table: column {columns[name]!r} holds too few distinct sizes for a law ({len(distinct)}, at least "
                f"{MIN_DISTINCT} are needed); add some, or keep the rows of one size"
            )
        if distinct[-1] < 10 * distinct[0]:
            points.warnings.append(
                f"{columns[name]} spans a factor of {distinct[-1] / distinct[0]:.1f}, less than one decade"
            )
    cells = len(np.unique(points.groups))
    if cells < MIN_CELLS[points.axis]:
        raise UserError(
            f"table: {cells} distinct cells are too few for a law, at least {MIN_CELLS[points.axis]} are needed; add some"
        )
