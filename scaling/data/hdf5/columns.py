"""The parameter table's columns: what shards keep of them, their units, what is possible in them, and a summary."""

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


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a column: its unit, and the bounds beyond which a value is a mistake."""

    unit: str
    low: float = -math.inf
    high: float = math.inf


_METALLICITY, _ANGLE, _LEVEL = Known("dex", -10.0, 3.0), Known("deg", -360.0, 360.0), Known("1", 0.0, 1.0)
LABELS = {
    "T_eff": Known("K", 1e3, 1e5),
    "log_g": Known("dex", -1.0, 10.0),
    **dict.fromkeys(("M_H", "Fe_H", "a_M", "C_M", "O_M"), _METALLICITY),
    "v_turb": Known("km/s", 0.0, 100.0),
}
"""What a model may be asked to predict."""
KNOWN = {
    **LABELS,
    **{f"{name}_err": Known(known.unit, 0.0) for name, known in LABELS.items()},
    "redshift": Known("1", -0.1, 20.0),
    "redshift_err": Known("1", 0.0),
    "exp_count": Known("1", 0.0),
    "exp_time": Known("s", 0.0),
    "seeing": Known("arcsec", 0.0, 60.0),
    "ext": Known("mag", -1.0, 100.0),
    "mag": Known("mag", -5.0, 40.0),
    "snr": Known("1", 1e-9),
    "moon_phase": _LEVEL,
    **dict.fromkeys(("target_zenith_angle", "target_field_angle", "moon_zenith_angle", "moon_target_angle"), _ANGLE),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnSummary:
    """One column of a parameter table: its type, unit (where known), range of finite values (of text none), and gaps."""

    name: str
    dtype: str
    unit: str | None
    min: float | None
    max: float | None
    nan: int

    def to_text(self) -> str:
        """The column as a line of a table."""
        low, high = ("-" if value is None else f"{value:.6g}" for value in (self.min, self.max))
        return f"  {self.name:<22}{self.dtype:<10}{self.unit or '':<8}{low:>14}{high:>14}{self.nan:>10}"


HEADER = f"  {'column':<22}{'type':<10}{'unit':<8}{'min':>14}{'max':>14}{'NaN':>10}"


def shard_type(path: Path, column: pd.Series) -> pa.DataType:
    """How shards keep a parameter column: a number or truth value as it is, text (also categories of it) as text.

    Args:
        path: The file that it is from.
        column: The column, or some of its rows.

    Raises:
        UserError: Shards cannot keep it, or have another column of its name.
    """
    if column.name in (ROW_ID, FLUX, ERROR):
        raise UserError(f"{path}: parameter column {column.name!r} has a name that shards use: rename it")
    categories = column.cat.categories if isinstance(column.dtype, pd.CategoricalDtype) else None
    values = column if categories is None else categories
    dtype = values.dtype
    if _is_real(column) and dtype.itemsize <= 8:
        return pa.from_numpy_dtype(dtype)
    # pandas calls every column of objects one of strings
    if all(map(_is_text, values)) if pd.api.types.is_object_dtype(dtype) else pd.api.types.is_string_dtype(dtype):
        with reading(path, f"parameter column {column.name!r}", "write its text in UTF-8"):
            for value in values:
                _ = value.decode() if isinstance(value, bytes) else str(value).encode()
        return pa.string()
    raise UserError(
        f"{path}: parameter column {column.name!r} is {column.dtype}: shards keep numbers, truth values and text: "
        "convert or drop it in the source file"
    )


def _is_text(value: object) -> bool:
    return isinstance(value, (str, bytes)) or value is None or value != value  # NaN is text that is missing


def summarise_column(name: str, column: pd.Series) -> ColumnSummary:
    """The summary of a column of a parameter table."""
    finite = column[np.isfinite(column)] if _is_real(column) else column[:0]
    return ColumnSummary(
        name=name,
        dtype=str(column.dtype),
        unit=KNOWN[name].unit if name in KNOWN else None,
        min=float(finite.min()) if len(finite) else None,
        max=float(finite.max()) if len(finite) else None,
        nan=int(column.isna().sum()),
    )


def _is_real(column: pd.Series) -> bool:
    return isinstance(column.dtype, np.dtype) and column.dtype.kind in "biuf"


def column_problems(name: str, column: pd.Series) -> list[str]:
    """What is wrong with a column's values, one sentence each.

    A label that is NaN in every row is normal: the simulator leaves what it does not use so.
    """
    if not _is_real(column):
        return [f"column {name} is {column.dtype}: expected numbers"] if name in LABELS else []
    problems, values = [], column.to_numpy(np.float64)
    missing, infinite = np.isnan(values), np.isinf(values)
    if name in LABELS and missing.any() and not missing.all():
        problems.append(
            f"label {name} is NaN in {missing.sum()} of {len(values)} rows, first in row {missing.argmax()}"
        )
    if infinite.any():
        problems.append(f"column {name} is infinite in {infinite.sum()} rows, first in row {infinite.argmax()}")
    known = KNOWN.get(name, Known(""))
    outside = ((values < known.low) | (values > known.high)) & ~infinite
    if outside.any():
        row = int(outside.argmax())
        bounds = f"{known.low:g} or more" if math.isinf(known.high) else f"{known.low:g} to {known.high:g}"
        problems.append(
            f"column {name} is out of range in {outside.sum()} rows, first in row {row}: "
            f"{values[row]:g}, expected {bounds} {known.unit}"
        )
    return problems
