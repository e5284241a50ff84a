"""Rows of flux and error: their signal to noise, and whether they can be used for training."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int64
from numpy import ndarray

from scaling.errors import UserError
from scaling.files import Location

ROW_ID, FLUX, ERROR = "row_id", "flux", "error"
"""The spectral columns in shards and in the output of `SpectraDatasource`; all other columns are parameters."""
SNR_PERCENTILES = (5, 25, 50, 75, 95)
SNR_DEFINITION = "95th percentile over pixels of flux / error, as float32"

Pixels = Float[ndarray, "row pixel"]


def spectrum_snr(flux: Pixels, error: Pixels) -> Float[ndarray, " row"]:
    """Signal to noise of each spectrum: the 95th percentile of flux / error over its pixels.

    This is the order statistic nearest to the percentile, in float32: found by a partial sort, without interpolation.
    """
    ratio = (flux / error).astype(np.float32, copy=False)
    rank = round(0.95 * (ratio.shape[1] - 1))
    ratio.partition(rank, axis=1)
    return ratio[:, rank].copy()


def snr_percentiles(snr: Float[ndarray, " row"]) -> dict[str, float]:
    """The 5th, 25th, 50th, 75th and 95th percentile of the spectra's SNR, by name."""
    return dict(
        zip(map(str, SNR_PERCENTILES), np.percentile(snr.astype(np.float64), SNR_PERCENTILES).tolist(), strict=True)
    )


def edge_faults(error: Pixels) -> Int64[ndarray, " row"]:
    """The number of first and last pixels of each spectrum whose error is NaN: 0, 1 or 2."""
    return np.isnan(error[:, [0, -1]]).sum(axis=1)


def fill_edges(error: Pixels) -> int:
    """Replace NaN errors at the edges by the neighbour's, in place, as in the original; returns the number."""
    missing = np.isnan(edges := error[:, [0, -1]])
    error[:, [0, -1]] = np.where(missing, error[:, [1, -2]], edges)
    return int(missing.sum())


def bad_rows(flux: Pixels, error: Pixels) -> dict[str, Bool[ndarray, " row"]]:
    """Rows that cannot be trained on, as a mask per kind of fault. NaN errors at the edges must be filled before."""
    unwritten = ~flux.any(axis=1)
    bad = {
        "flux is 0 in every pixel (never written)": unwritten,
        "flux is not finite": ~np.isfinite(flux).all(axis=1),
        "error is not finite (beyond the edge pixels)": ~np.isfinite(error).all(axis=1),
        "error is 0 or negative": (error <= 0).any(axis=1) & ~unwritten,
    }
    with np.errstate(all="ignore"):
        bound = np.maximum(flux.max(axis=1), -flux.min(axis=1)) / error.min(axis=1)
        overflow = ~np.logical_or.reduce([*bad.values(), bound < np.inf])
        overflow[overflow] = ~np.isfinite(spectrum_snr(flux[overflow], error[overflow]))
    return bad | {"SNR is not finite (the error is too small)": overflow}


def _all_usable(flux: Pixels, error: Pixels) -> bool:
    """A sufficient test that ``bad_rows`` finds nothing, in half its time. A NaN fails every comparison."""
    brightest, faintest, least = flux.max(axis=1), flux.min(), error.min()
    if not ((brightest < np.inf).all() and faintest > -np.inf and error.max() < np.inf and least > 0):
        return False
    with np.errstate(over="ignore"):
        return bool((brightest != 0).all() and max(brightest.max(), -faintest) / least < np.inf)


def check_rows(flux: Pixels, error: Pixels, path: Location, rows: Int64[ndarray, " row"] | None = None) -> None:
    """Raise for the ``bad_rows`` of a file; ``rows`` are their row numbers in it, from 0 by default.

    Raises:
        UserError: A row was never written, a flux or error is not finite, an error is not positive, or the SNR overflows.
    """
    if not len(flux) or _all_usable(flux, error):
        return
    numbers = np.arange(len(flux)) if rows is None else rows
    for kind, bad in bad_rows(flux, error).items():
        if bad.any():
            many = f"{int(bad.sum())} such among rows {numbers.min()} to {numbers.max()}"
            raise UserError(
                f"{path}: {kind} in row {numbers[bad].min()}, {many}: correct or drop these rows in the source file"
            )
