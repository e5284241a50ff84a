"""Statistics of the training split, per pixel and per column, and spectra that are there more than once."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float32, Float64, Int64, UInt64
from numpy import ndarray

from scaling.data.shards.manifest import LabelStatistics, published
from scaling.data.spectra import spectrum_snr

BLOCK_ROWS = 128
"""Rows summed in float32, six times as fast as in float64; the blocks are added up in float64."""


@dataclass(frozen=True, slots=True)
class PixelMoments:
    """Sums over spectra from which per-pixel statistics follow, to about 1e-6; those of two sets of rows add up.

    Attributes:
        rows: Number of spectra.
        flux_mean: Mean of max(flux, 0).
        flux_m2: Sum of squared deviations from it.
        error_squares: Sum of squared errors.
    """

    rows: int
    flux_mean: Float64[ndarray, " pixel"]
    flux_m2: Float64[ndarray, " pixel"]
    error_squares: Float64[ndarray, " pixel"]

    @classmethod
    def of(cls, flux: Float32[ndarray, "row pixel"], error: Float32[ndarray, "row pixel"]) -> PixelMoments:
        """The moments of some rows, at least one."""
        total = None
        for start in range(0, len(flux), BLOCK_ROWS):
            rows = slice(start, start + BLOCK_ROWS)
            clipped = np.maximum(flux[rows], np.float32(0))
            mean = clipped.mean(axis=0)
            clipped -= mean
            sums = [np.einsum("rp,rp->p", values, values).astype(np.float64) for values in (clipped, error[rows])]
            block = cls(len(clipped), mean.astype(np.float64), *sums)
            total = block if total is None else total + block
        assert total is not None
        return total

    def __add__(self, other: PixelMoments) -> PixelMoments:
        rows = self.rows + other.rows
        delta = other.flux_mean - self.flux_mean
        return type(self)(
            rows,
            self.flux_mean + delta * (other.rows / rows),
            self.flux_m2 + other.flux_m2 + np.square(delta) * (self.rows * other.rows / rows),
            self.error_squares + other.error_squares,
        )


@dataclass(frozen=True, slots=True)
class ColumnMoments:
    """Sums over rows from which the statistics of number columns follow; those of two sets of rows add up.

    All are over the finite values of each column.

    Attributes:
        rows: Number of rows, finite or not.
        finite: Number of finite values.
        mean: Their mean, 0 where there are none.
        m2: Sum of squared deviations from it.
        low: The least, infinite where there are none.
        high: The greatest.
    """

    rows: int
    finite: Int64[ndarray, " column"]
    mean: Float64[ndarray, " column"]
    m2: Float64[ndarray, " column"]
    low: Float64[ndarray, " column"]
    high: Float64[ndarray, " column"]

    @classmethod
    def of(cls, values: Float64[ndarray, "row column"]) -> ColumnMoments:
        """The moments of some rows, at least one."""
        known = np.isfinite(values)
        finite = known.sum(axis=0)
        mean = np.where(known, values, 0.0).sum(axis=0) / np.maximum(finite, 1)
        deviations = np.where(known, values, mean) - mean
        low, high = np.where(known, values, np.inf).min(axis=0), np.where(known, values, -np.inf).max(axis=0)
        return cls(len(values), finite, mean, np.square(deviations).sum(axis=0), low, high)

    def __add__(self, other: ColumnMoments) -> ColumnMoments:
        finite = self.finite + other.finite
        weight = other.finite / np.maximum(finite, 1)
        delta = other.mean - self.mean
        return type(self)(
            self.rows + other.rows,
            finite,
            self.mean + delta * weight,
            self.m2 + other.m2 + np.square(delta) * self.finite * weight,
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
        )

    def statistics(self, names: list[str]) -> dict[str, LabelStatistics]:
        """The statistics of each column, by name."""
        found = {}
        for at, name in enumerate(names):
            nan = self.rows - int(self.finite[at])
            std = np.sqrt(self.m2[at] / max(self.finite[at], 1))
            values = [float(value) for value in (self.mean[at], std, self.low[at], self.high[at])]
            mean, std, low, high = values if self.finite[at] else [np.nan] * 4
            found[name] = LabelStatistics(mean=mean, std=std, min=low, max=high, nan=nan)
        return found


@dataclass(frozen=True, slots=True)
class TrainingStatistics:
    """What the manifest says of the training split; that of consecutive rows adds up."""

    snr: Float32[ndarray, " sampled"]
    pixels: PixelMoments
    columns: ColumnMoments

    @classmethod
    def of(
        cls,
        flux: Float32[ndarray, "row pixel"],
        error: Float32[ndarray, "row pixel"],
        columns: Float64[ndarray, "row column"],
        sampled: Bool[ndarray, " row"],
    ) -> TrainingStatistics:
        """The statistics of some rows, with the SNR of those that are ``sampled`` (a percentile is slow)."""
        snr = spectrum_snr(flux[sampled], error[sampled])
        return cls(snr, PixelMoments.of(flux, error), ColumnMoments.of(columns))

    def __add__(self, other: TrainingStatistics) -> TrainingStatistics:
        snr = np.concatenate([self.snr, other.snr])
        return type(self)(snr, self.pixels + other.pixels, self.columns + other.columns)


def write_pixel_statistics(path: Path, wave: Float64[ndarray, " pixel"], moments: PixelMoments) -> None:
    """Write one row a pixel: ``wave`` (vacuum Å), ``flux_mean`` and ``flux_std`` of max(flux, 0), ``error_rms``."""
    columns = {
        "wave": wave,
        "flux_mean": moments.flux_mean,
        "flux_std": np.sqrt(moments.flux_m2 / moments.rows),
        "error_rms": np.sqrt(moments.error_squares / moments.rows),
    }
    with published(path) as temporary:
        pq.write_table(pa.table(columns), temporary)


def repeated_spectra(hashes: dict[str, UInt64[ndarray, " row"]]) -> list[str]:
    """Spectra that two splits share, or that one holds more than once, one sentence for each pair of splits.

    Args:
        hashes: A hash of each spectrum, in row order, by split.
    """
    problems = []
    for split, values in hashes.items():
        first_of_each = np.unique(values, return_index=True)[1]
        if copies := len(values) - len(first_of_each):
            spectra = "spectrum of" if copies == 1 else "spectra of"
            problems.append(f"{copies} {spectra} {split} repeat another of the same split")
    for larger, smaller in itertools.combinations(hashes, 2):
        common, in_larger, in_smaller = np.intersect1d(hashes[larger], hashes[smaller], return_indices=True)
        if len(common):
            count = int(np.isin(hashes[smaller], common).sum())
            row = int(in_smaller.argmin())
            spectra = f"{count} spectrum of {smaller} is" if count == 1 else f"{count} spectra of {smaller} are"
            problems.append(
                f"{spectra} also in {larger}, first: {smaller} row {in_smaller[row]} = {larger} row {in_larger[row]}"
            )
    return problems
