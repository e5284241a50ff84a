"""Error by signal to noise with the information limit of the spectra, to show whether the data limit the error."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.points.limit import Limit
from analysis.report.figures.style import (
    COLUMN,
    colour,
    error_axis,
    error_label,
    marker,
    new_figure,
    short,
    size_ticks,
    styled,
)

SNR_LABEL = "signal to noise of the spectrum"


def snr_bins(cells: pd.DataFrame) -> pd.DataFrame:
    """MAE by SNR: one row per bin and cell, with low, high, count, mae_dex, bias_dex, rmse_dex, sem_dex.

    `sem_dex` is the standard error of the MAE over the bin's finite number of spectra; `cell` is the cell's index.
    """
    lines = [
        {"cell": cell, **line} for cell, text in cells.get("test_by_snr", pd.Series()).items() for line in _parsed(text)
    ]
    return pd.DataFrame(lines, columns=["cell", "low", "high", "count", "mae_dex", "bias_dex", "rmse_dex", "sem_dex"])


@styled
def mae_by_snr(cells: pd.DataFrame, limit: Limit | None) -> Figure | None:
    """MAE over signal to noise for a few cells, with the information limit and the error of predicting the mean.

    The cells are the best one, the smallest and the largest model on their largest number of spectra, and the largest model
    on its smallest; seeds are averaged. Error bars are one standard error over the bin's spectra, which all cells share.

    Args:
        cells: `CellTable.cells` of one family.
        limit: The limit of the same test spectra; None if unknown.

    Returns:
        None if the rows have no errors by signal to noise.
    """
    bins = snr_bins(cells)
    if bins.empty:
        return None
    figure = new_figure(COLUMN, 0.95 * COLUMN)
    axes = figure.subplots()
    chosen = _chosen(cells.loc[bins["cell"].unique()])
    for place, ((N, D), name) in enumerate(chosen.items()):
        some = cells.index[(cells["num_params"] == N) & (cells["num_spectra"] == D)]
        curve = bins[bins["cell"].isin(some)].groupby(["low", "high"], as_index=False).mean()
        axes.errorbar(
            _centres(curve),
            curve["mae_dex"],
            yerr=curve["sem_dex"],
            color=colour(place, len(chosen)),
            marker=marker(place),
            ms=3.5,
            lw=0.9,
            capsize=1.5,
            label=name,
        )
    if limit is not None:
        axes.plot(_centres(limit.by_snr), limit.by_snr["mae_dex"], color="black", lw=1.6, label="information limit")
    guess = float(cells["test_guess_mae_dex"].mean())
    if np.isfinite(guess):
        axes.axhline(guess, color="0.3", ls=":", lw=1.2, label="always the mean")
    axes.set(xscale="log", yscale="log", xlabel=SNR_LABEL, ylabel=error_label(cells))
    size_ticks(axes.xaxis, bins[["low", "high"]].to_numpy().ravel(), text=lambda value: f"{value:.3g}")
    error_axis(axes, "y")
    axes.grid()
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def _parsed(text: object) -> list[dict[str, float]]:
    return json.loads(text) if isinstance(text, str) and text else []


def _centres(bins: pd.DataFrame) -> np.ndarray:
    return np.sqrt(bins["low"].to_numpy(float) * bins["high"].to_numpy(float))


def _chosen(cells: pd.DataFrame) -> dict[tuple[int, int], str]:
    """Maps (N, D) of the cells to draw to their names, in descending order of their mean test error."""
    means = cells.groupby(["num_params", "num_spectra"])[["val_mae_dex", "test_mae_dex"]].mean()
    grid = list(means.index)
    smallest, largest = min(grid)[0], max(grid)[0]
    best = means["val_mae_dex"].idxmin()
    corners = [
        max(key for key in grid if key[0] == smallest),
        min(key for key in grid if key[0] == largest),
        max(grid),
    ]
    ordered = sorted({*corners, best}, key=lambda key: -means.loc[key, "test_mae_dex"])
    return {(N, D): f"N = {short(N)}, D = {short(D)}{' (best)' if best == (N, D) else ''}" for N, D in ordered}
