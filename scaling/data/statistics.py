"""Statistics of the training split: per pixel and per label."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float
from numpy import ndarray

from scaling.data.manifest import LabelStatistics, temporary_name


@dataclass(frozen=True, slots=True)
class PixelMoments:
    """Sums over spectra from which per-pixel statistics follow; those of two sets of rows add up.

    Attributes:
        rows: Number of spectra.
        flux_mean: Mean of max(flux, 0), (pixels,) float64.
        flux_m2: Sum of squared deviations from it, (pixels,) float64.
        error_squares: Sum of squared errors, (pixels,) float64.
    """

    rows: int
    flux_mean: Float[ndarray, " pixel"]
    flux_m2: Float[ndarray, " pixel"]
    error_squares: Float[ndarray, " pixel"]

    @classmethod
    def of(cls, flux: Float[ndarray, "row pixel"], error: Float[ndarray, "row pixel"]) -> PixelMoments:
        """The moments of some rows."""
        clipped = np.maximum(flux, 0.0).astype(np.float64)
        mean = clipped.mean(axis=0)
        clipped -= mean
        return cls(len(flux), mean, np.square(clipped).sum(axis=0), np.square(error, dtype=np.float64).sum(axis=0))

    def __add__(self, other: PixelMoments) -> PixelMoments:
        rows = self.rows + other.rows
        delta = other.flux_mean - self.flux_mean
        return type(self)(
            rows,
            self.flux_mean + delta * (other.rows / rows),
            self.flux_m2 + other.flux_m2 + np.square(delta) * (self.rows * other.rows / rows),
            self.error_squares + other.error_squares,
        )


def write_pixel_statistics(path: Path, wave: Float[ndarray, " pixel"], moments: PixelMoments) -> None:
    """Write one row a pixel: ``wave`` (vacuum Å), ``flux_mean`` and ``flux_std`` of max(flux, 0), ``error_rms``."""
    columns = {
        "wave": wave,
        "flux_mean": moments.flux_mean,
        "flux_std": np.sqrt(moments.flux_m2 / moments.rows),
        "error_rms": np.sqrt(moments.error_squares / moments.rows),
    }
    temporary = temporary_name(path)
    try:
        pq.write_table(pa.table(columns), temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def label_statistics(paths: list[Path], columns: list[str]) -> dict[str, LabelStatistics]:
    """Statistics of number columns over the finite values of some shards."""
    table = pa.concat_tables(pq.read_table(path, columns=columns).replace_schema_metadata() for path in paths)
    return {name: _summarise(table[name].to_numpy().astype(np.float64)) for name in columns}


def _summarise(values: Float[ndarray, " row"]) -> LabelStatistics:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return LabelStatistics(mean=np.nan, std=np.nan, min=np.nan, max=np.nan, nan=len(values))
    return LabelStatistics(
        mean=float(finite.mean()),
        std=float(finite.std()),
        min=float(finite.min()),
        max=float(finite.max()),
        nan=len(values) - len(finite),
    )
