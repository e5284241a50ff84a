"""Data of the curve figures: measured errors over N and D, from a study's cells or from any table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.laws import Array
from analysis.report.figures.style import error_label
from scaling.results import measure_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """Measured errors, with the names of their axes.

    Attributes:
        N: Model sizes (n,).
        D: Numbers of distinct spectra (n,), or the table's own unit of data.
        loss: Measured errors (n,).
        held: Mask of errors excluded from the fit (n,).
        flops: Training compute (n,), or None if unknown.
        trials: Trial names (n,), or None.
        error: The error's name and unit.
    """

    N: Array
    D: Array
    loss: Array
    held: NDArray[np.bool_]
    flops: Array | None = None
    trials: NDArray[np.str_] | None = None
    error: str = "loss"

    @classmethod
    def from_cells(cls, cells: pd.DataFrame) -> Observed:
        """The cells of one family (`CellTable.cells`)."""
        flops = cells["train_flops"].to_numpy(float)
        return cls(
            N=cells["num_params"].to_numpy(float),
            D=cells["num_spectra"].to_numpy(float),
            loss=cells[measure_of(cells).test].to_numpy(float),
            held=cells["held_out"].to_numpy(bool),
            flops=flops if np.all(np.isfinite(flops) & (flops > 0)) else None,
            trials=cells["trial"].to_numpy(str),
            error=error_label(cells),
        )
