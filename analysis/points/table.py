"""The input of a fit: validated points from named columns of any table."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from analysis.laws import Array
from scaling.errors import UserError

MIN_DISTINCT = 3
"""Minimum number of distinct values of N, and of D, that determine a curve with a floor."""

RISING = 0.5
"""Maximum rank correlation of a loss with N·D; a column that rises more is not a loss."""

COLLINEAR = 0.99
"""Absolute correlation of log N and log D above which no fit can separate their terms."""

SMALLEST, LARGEST = 1e-100, 1e100
"""Range of accepted numbers; powers of others would leave the floating-point range."""

MIN_CELLS = {"ND": 6, "N": 4, "D": 4}
"""Minimum number of distinct cells, by the axes that vary: two more than the parameters of the smallest form."""

_SYNONYMS = {
    "n": ("n", "params", "parameters", "num_params", "n_params", "model_size"),
    "d": ("d", "tokens", "samples", "num_spectra", "n_tokens", "training_tokens", "dataset_size", "x"),
    "loss": ("loss", "error", "mae", "test_loss", "val_loss", "test_mae_dex"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """Validated input of a fit.

    Attributes:
        N: Model sizes (n,), positive; ones if the table has none.
        D: Numbers of distinct spectra (n,), positive; ones if the table has none.
        loss: The loss to fit (n,), positive.
        S: Samples seen in training (n,), or None if the table does not have them.
        sem: Standard error of each loss from the finite test set (n,), in the loss's unit, or None.
        warnings: Warnings, as text.
        floor: Lower bound on every law's floor, in the loss's unit: the information limit if known, else 0.
    """

    N: Array
    D: Array
    loss: Array
    S: Array | None = None
    sem: Array | None = None
    warnings: list[str] = field(default_factory=list)
    floor: float = 0.0

    def __len__(self) -> int:
        return len(self.loss)

    @property
    def axis(self) -> str:
        """Which of N and D vary: "ND", "N" or "D"; "" if neither does."""
        return "".join(name for name, values in (("N", self.N), ("D", self.D)) if np.ptp(values) > 0)

    @property
    def samples_vary(self) -> bool:
        """Whether a forecast must specify its samples seen, as neither they nor the epochs are equal for all runs."""
        return self.S is not None and bool(min(np.ptp(self.S), np.ptp(self.S / self.D)) > 0)

    @property
    def collinear(self) -> bool:
        """Whether N and D both vary but move together, as with D = 20 N: no fit can then separate their terms."""
        if self.axis != "ND":
            return False
        return bool(abs(np.corrcoef(np.log(self.N), np.log(self.D))[0, 1]) > COLLINEAR)

    @property
    def groups(self) -> NDArray[np.intp]:
        """The cell number of each run (n,): runs of one cell share N, D and S."""
        places = np.stack([self.N, self.D] + ([] if self.S is None else [self.S]))
        return np.unique(places, axis=1, return_inverse=True)[1].ravel()

    def logs(self, variables: tuple[str, ...]) -> Array:
        """The natural logarithms (v, n) of a law's variables.

        Raises:
            UserError: A variable is missing from the table, or a curve of one variable is requested where both vary.
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
        """Select points by a mask or by indices."""
        S, sem = (None if each is None else each[chosen] for each in (self.S, self.sem))
        return replace(self, N=self.N[chosen], D=self.D[chosen], loss=self.loss[chosen], S=S, sem=sem)


def column_names(frame: pd.DataFrame, n: str | None, d: str | None, loss: str | None) -> dict[str, str | None]:
    """The columns "n", "d" and "loss": as given, else by their usual names in any case; None if there is none.

    Raises:
        UserError: There is no loss column, or neither N nor D.
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

    Rows that exactly repeat another in these columns, and in a column "seed" if there is one, are copies rather than new
    runs: they count once, with a warning.

    Args:
        frame: The table.
        n: Name of the column of model sizes; None if all runs have the same.
        d: Name of the column of data sizes; None if all runs have the same.
        loss: Name of the column to fit.
        samples_seen: Name of the column of samples seen in training.
        sem: Name of the column of the standard error of each loss.

    Raises:
        UserError: A column is missing, not numeric, NaN or not positive, or there are too few distinct sizes.
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
    kept = {name: column[~copies] for name, column in values.items()}
    points = Points(N=kept["N"], D=kept["D"], loss=kept["loss"], S=kept.get("S"), sem=kept.get("sem"))
    if copies.any():
        points.warnings.append(
            f"{copies.sum()} rows repeat another one exactly and count once; if they are repeats that agree by chance, "
            "tell them apart by a column named seed"
        )
    _check_sizes(points, {"N": n or "N", "D": d or "D"})
    if np.ptp(points.loss) == 0:
        points.warnings.append(f"all values of {loss} are equal, so no form can be selected")
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
    if len(numbers) and not SMALLEST < numbers.min() <= numbers.max() < LARGEST:
        raise UserError(
            f"table: column {column!r} reaches from {numbers.min():.3g} to {numbers.max():.3g}; a fit needs numbers from {SMALLEST:g} "
            f"to {LARGEST:g}: correct the value, or use another unit"
        )
    return numbers


def _copies(frame: pd.DataFrame, values: dict[str, Array]) -> NDArray[np.bool_]:
    """Mask of rows that repeat an earlier one in all these values and in columns "seed" and "study" of the table."""
    identity = pd.DataFrame(values)
    for column in frame.columns:
        if str(column).lower() in ("seed", "study"):
            identity[f"column {column}"] = frame[column].to_numpy()
    return identity.duplicated().to_numpy()


def require_falling(points: Points, column: str) -> None:
    """Reject a column that rises with size, such as an accuracy: a law of an error would fit it as a constant.

    Raises:
        UserError: It rises, by rank correlation.
    """
    size = points.N * points.D
    if np.ptp(size) == 0 or np.ptp(points.loss) == 0:
        return
    found = stats.spearmanr(size, points.loss)
    if found.statistic > RISING and found.pvalue < 0.01:
        raise UserError(
            f"table: column {column!r} rises with size (rank correlation {found.statistic:.2f}), and a law is of an error, which "
            "falls; give one, such as 1 − accuracy"
        )


def large_enough(points: Points) -> bool:
    """Whether there are as many sizes and cells as `points_from_columns` requires."""
    sizes = [len(np.unique(getattr(points, name))) for name in points.axis]
    return bool(sizes) and min(sizes) >= MIN_DISTINCT and len(np.unique(points.groups)) >= MIN_CELLS[points.axis]


def _check_sizes(points: Points, columns: dict[str, str]) -> None:
    """Reject too few sizes or cells; warn about short ranges."""
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
    if points.collinear:
        points.warnings.append(
            f"{columns['N']} and {columns['D']} move together, so that no fit separates capacity from data: the parameters, "
            "the error budget and the best size for a compute are not determined; add runs off that line"
        )
    cells = len(np.unique(points.groups))
    if cells < MIN_CELLS[points.axis]:
        raise UserError(
            f"table: {cells} distinct cells are too few for a law, at least {MIN_CELLS[points.axis]} are needed; add some"
        )
