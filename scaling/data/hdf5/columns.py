"""Columns of the parameter table: their type in shards, units, plausible ranges, and summaries."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from scaling.data.hdf5.guard import reading
from scaling.data.spectra import ERROR, FLUX, ROW_ID
from scaling.errors import UserError

Known = tuple[str, float, float]
"""Prior knowledge of a column: its unit, and the bounds beyond which a value is an error."""
UNKNOWN: Known = ("", -math.inf, math.inf)
LABELS: dict[str, Known] = {
    "T_eff": ("K", 1e3, 1e5),
    "log_g": ("dex", -1.0, 10.0),
    **dict.fromkeys(("M_H", "Fe_H", "a_M", "C_M", "O_M"), ("dex", -10.0, 3.0)),
    "v_turb": ("km/s", 0.0, 100.0),
}
"""Columns that can be labels, that is, predicted by a model."""
ANGLES = ("target_zenith_angle", "target_field_angle", "moon_zenith_angle", "moon_target_angle")
KNOWN: dict[str, Known] = {
    **LABELS,
    **{f"{name}_err": (unit, 0.0, math.inf) for name, (unit, _, _) in LABELS.items()},
    "redshift": ("1", -0.1, 20.0),
    **dict.fromkeys(("redshift_err", "exp_count"), ("1", 0.0, math.inf)),
    "exp_time": ("s", 0.0, math.inf),
    "seeing": ("arcsec", 0.0, 60.0),
    "ext": ("mag", -1.0, 100.0),
    "mag": ("mag", -5.0, 40.0),
    "snr": ("1", 1e-9, math.inf),
    "moon_phase": ("1", 0.0, 1.0),
    **dict.fromkeys(ANGLES, ("deg", -360.0, 360.0)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnSummary:
    """One column of a parameter table: its type, unit (if known), range of finite values (none for text), and gaps."""

    name: str
    dtype: str
    unit: str | None
    min: float | None
    max: float | None
    nan: int

    def to_text(self) -> str:
        """The column as one line of a table."""
        low, high = ("-" if value is None else f"{value:.6g}" for value in (self.min, self.max))
        return f"  {self.name:<22}{self.dtype:<10}{self.unit or '':<8}{low:>14}{high:>14}{self.nan:>10}"


HEADER = f"  {'column':<22}{'type':<10}{'unit':<8}{'min':>14}{'max':>14}{'NaN':>10}"


def shard_type(path: Path, column: pd.Series) -> pa.DataType:
    """The Arrow type of a parameter column in shards: text, also categorical, is a string; all else is unchanged.

    Raises:
        UserError: Shards cannot store it, or already have another column of this name.
    """
    what = f"parameter column {column.name!r}"
    if column.name in (ROW_ID, FLUX, ERROR):
        raise UserError(f"{path}: {what} has a name that shards use: rename it")
    values = column.cat.categories if isinstance(column.dtype, pd.CategoricalDtype) else column
    if _is_real(column) and column.dtype.itemsize <= 8:
        return pa.from_numpy_dtype(column.dtype)
    is_text = pd.api.types.is_string_dtype(values.dtype)
    if values.dtype == object:  # NaN marks missing text
        is_text = all(isinstance(value, str | bytes) or value is None or value != value for value in values)
    if is_text:
        with reading(path, what, "write its text in UTF-8"):
            for value in values:
                _ = value.decode() if isinstance(value, bytes) else str(value).encode()
        return pa.string()
    remedy = "shards keep numbers, truth values and text: convert or drop it in the source file"
    raise UserError(f"{path}: {what} is {column.dtype}: {remedy}")


def _is_real(column: pd.Series) -> bool:
    return isinstance(column.dtype, np.dtype) and column.dtype.kind in "biuf"


def summarise_column(name: str, column: pd.Series) -> ColumnSummary:
    """Summarise a column of a parameter table."""
    finite = column[np.isfinite(column)] if _is_real(column) else column[:0]
    return ColumnSummary(
        name=name,
        dtype=str(column.dtype),
        unit=KNOWN[name][0] if name in KNOWN else None,
        min=float(finite.min()) if len(finite) else None,
        max=float(finite.max()) if len(finite) else None,
        nan=int(column.isna().sum()),
    )


def column_problems(name: str, column: pd.Series) -> list[str]:
    """The problems of a column's values, one sentence each.

    A label that is NaN in every row is normal: the simulator leaves unused labels so.
    """
    if not _is_real(column):
        return [f"column {name} is {column.dtype}: expected numbers"] if name in LABELS else []
    problems, values, (unit, low, high) = [], column.to_numpy(np.float64), KNOWN.get(name, UNKNOWN)
    missing, infinite = np.isnan(values), np.isinf(values)
    if name in LABELS and missing.any() and not missing.all():
        problems.append(
            f"label {name} is NaN in {missing.sum()} of {len(values)} rows, first in row {missing.argmax()}"
        )
    if infinite.any():
        problems.append(f"column {name} is infinite in {infinite.sum()} rows, first in row {infinite.argmax()}")
    outside = ((values < low) | (values > high)) & ~infinite
    if outside.any():
        row, bounds = int(outside.argmax()), f"{low:g} or more" if math.isinf(high) else f"{low:g} to {high:g}"
        problems.append(
            f"column {name} is out of range in {outside.sum()} rows, first in row {row}: "
            f"{values[row]:g}, expected {bounds} {unit}"
        )
    return problems
