"""Statistics of the training split, per pixel and per column, and detection of repeated spectra."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64, UInt64
from numpy import ndarray

from scaling.data.shards.manifest import LabelStatistics
from scaling.data.spectra import spectrum_snr

BLOCK_ROWS = 128
"""Rows summed in float32, six times as fast as float64; block sums are added in float64."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, mean and sum of squared deviations per column; moments of two sets can be added (Chan et al. 1979)."""

    count: Int64[ndarray, " column"]
    mean: Float64[ndarray, " column"]
    m2: Float64[ndarray, " column"]

    def __add__(self, other: Moments) -> Moments:
        count = self.count + other.count
        weight = other.count / np.maximum(count, 1)
        delta = other.mean - self.mean
        m2 = self.m2 + other.m2 + np.square(delta) * self.count * weight
        return Moments(count, self.mean + delta * weight, m2)

    @property
    def std(self) -> Float64[ndarray, " column"]:
        """The population standard deviation."""
        return np.sqrt(self.m2 / np.maximum(self.count, 1))


@dataclass(frozen=True, slots=True)
class TrainingStatistics:
    """Training statistics for the manifest; those of consecutive rows can be added.

    Attributes:
        snr: SNR of the sampled rows.
        flux: Moments of max(flux, 0) in each pixel, to about 1e-6.
        error_squares: Sum of squared errors in each pixel.
        rows: Number of rows.
        columns: Moments of the finite values of each numeric column.
        low: Minimum finite value of each column, infinite if there is none.
        high: Maximum finite value of each column.
    """

    snr: Float32[ndarray, " sampled"]
    flux: Moments
    error_squares: Float64[ndarray, " pixel"]
    rows: int
    columns: Moments
    low: Float64[ndarray, " column"]
    high: Float64[ndarray, " column"]

    @classmethod
    def of(
        cls,
        flux: Float32[ndarray, "row pixel"],
        error: Float32[ndarray, "row pixel"],
        columns: Float64[ndarray, "row column"],
        sampled: Bool[ndarray, " row"],
    ) -> TrainingStatistics:
        """Compute the statistics of at least one row, with the SNR of the ``sampled`` rows (a percentile is slow)."""
        known = np.isfinite(columns)
        blocks = [_pixel_moments(flux[i : i + BLOCK_ROWS]) for i in range(0, len(flux), BLOCK_ROWS)]
        squares = [_square_sums(error[i : i + BLOCK_ROWS]) for i in range(0, len(error), BLOCK_ROWS)]
        return cls(
            spectrum_snr(flux[sampled], error[sampled]),
            sum(blocks[1:], blocks[0]),
            sum(squares[1:], squares[0]),
            len(flux),
            _column_moments(columns, known),
            np.where(known, columns, np.inf).min(axis=0),
            np.where(known, columns, -np.inf).max(axis=0),
        )

    def __add__(self, other: TrainingStatistics) -> TrainingStatistics:
        return TrainingStatistics(
            np.concatenate([self.snr, other.snr]),
            self.flux + other.flux,
            self.error_squares + other.error_squares,
            self.rows + other.rows,
            self.columns + other.columns,
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
        )

    def labels(self, names: list[str]) -> dict[str, LabelStatistics]:
        """Statistics of each numeric column, by name."""
        found = {}
        for at, name in enumerate(names):
            finite = int(self.columns.count[at])
            values = [self.columns.mean[at], self.columns.std[at], self.low[at], self.high[at]]
            mean, std, low, high = (float(value) if finite else np.nan for value in values)
            found[name] = LabelStatistics(mean=mean, std=std, min=low, max=high, nan=self.rows - finite)
        return found

    def pixels(self) -> dict[str, Float64[ndarray, " pixel"]]:
        """Statistics of each pixel, as in ``Manifest.pixel_statistics`` except for the wavelengths."""
        error_rms = np.sqrt(self.error_squares / self.rows)
        return {"flux_mean": self.flux.mean, "flux_std": self.flux.std, "error_rms": error_rms}


def _square_sums(values: Float32[ndarray, "row pixel"]) -> Float64[ndarray, " pixel"]:
    return np.einsum("rp,rp->p", values, values).astype(np.float64)


def _pixel_moments(flux: Float32[ndarray, "row pixel"]) -> Moments:
    clipped = np.maximum(flux, np.float32(0))
    mean = clipped.mean(axis=0)
    clipped -= mean
    return Moments(np.full(flux.shape[1], len(flux)), mean.astype(np.float64), _square_sums(clipped))


def _column_moments(values: Float64[ndarray, "row column"], known: Bool[ndarray, "row column"]) -> Moments:
    count = known.sum(axis=0)
    mean: Float[ndarray, " column"] = np.where(known, values, 0.0).sum(axis=0) / np.maximum(count, 1)
    deviations = np.where(known, values, mean) - mean
    return Moments(count, mean, np.square(deviations).sum(axis=0))


def repeated_spectra(hashes: dict[str, UInt64[ndarray, " row"]]) -> list[str]:
    """Spectra shared by two splits or repeated within one, as one sentence per pair of splits.

    Args:
        hashes: A hash of each spectrum, in row order, by split.
    """
    problems = []
    for split, values in hashes.items():
        if copies := len(values) - len(np.unique(values)):
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
