"""The error as a surface over N and D."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from analysis.answers.forecast import places
from analysis.intervals.compare import Comparison
from analysis.laws import Array
from analysis.report.figures.observed import Observed
from analysis.report.figures.style import COLUMN, DATA, SIZE, name_trials, new_figure, size_ticks, styled

if TYPE_CHECKING:
    from analysis.answers.allocation import Path

_GRID = 80
_MARGIN = 1.5


@styled
def error_surface(observed: Observed, comparison: Comparison, path: Path | None = None) -> Figure:
    """The selected law over (N, D) with isolines of equal error, and the measured errors in the same colours.

    Args:
        observed: The errors; held-out ones are drawn open.
        comparison: The fitted law over N and D.
        path: The compute-optimal path, drawn where it crosses the surface.

    Raises:
        UserError: The law needs the samples seen, which differ between runs.
    """
    figure = new_figure(COLUMN, 1.05 * COLUMN)
    axes = figure.subplots()
    axes.set(xscale="log", yscale="log", xlabel=DATA, ylabel=SIZE)
    N = np.geomspace(observed.N.min() / _MARGIN, observed.N.max() * _MARGIN, _GRID)
    D = np.geomspace(observed.D.min() / _MARGIN, observed.D.max() * _MARGIN, _GRID)
    across, along = np.meshgrid(D, N)
    fitted = comparison.law
    logs = places(comparison.points, fitted.law, along.ravel(), across.ravel())
    law = fitted.law.value(fitted.theta, logs).reshape(across.shape)
    ends = np.concatenate([law.ravel(), observed.loss])
    norm = LogNorm(ends.min(), ends.max())
    colours = mpl.colormaps["viridis"]
    levels = _levels(float(ends.min()), float(ends.max()))
    axes.set(xlim=(D[0], D[-1]), ylim=(N[0], N[-1]))
    axes.pcolormesh(D, N, law, cmap=colours, norm=norm, shading="gouraud", rasterized=True)
    lines = axes.contour(D, N, law, levels=levels, colors="white", linewidths=0.8)
    axes.clabel(
        lines, fmt=lambda value: f"{value:.3g}", fontsize=7, manual=_label_places(observed.N, N, D, law, levels)
    )
    for x, y, value, held in zip(observed.D, observed.N, observed.loss, observed.held, strict=True):
        shade = colours(norm(value))
        face, edge = ("white", "black") if held else (shade, "white")
        axes.plot(x, y, "o", ms=6, mfc=face, mec=edge, mew=0.8, zorder=4)
    name_trials(axes, observed.D, observed.N, observed.trials)
    if path is not None:
        axes.plot(path.table["D"], path.table["N"], color="black", lw=1.4)
    size_ticks(axes.xaxis, observed.D)
    size_ticks(axes.yaxis, observed.N)
    bar = figure.colorbar(mpl.cm.ScalarMappable(norm, colours), ax=axes, label=observed.error, location="top")
    assert bar.solids is not None
    bar.solids.set_rasterized(True)
    bar.ax.xaxis.set_major_locator(FixedLocator(levels))
    bar.ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    bar.ax.xaxis.set_minor_locator(NullLocator())
    bar.ax.xaxis.set_minor_formatter(NullFormatter())
    return figure


def _label_places(sizes: Array, N: Array, D: Array, law: Array, levels: list[float]) -> list[tuple[float, float]]:
    """(D, N) on each isoline, between two model sizes, where no cell lies; between the middle two if possible."""
    rungs = np.unique(sizes)
    between = np.sqrt(rungs[1:] * rungs[:-1])
    found = []
    for level in levels:
        for size in sorted(between, key=lambda each: abs(np.log(each / np.median(rungs)))):
            row = law[np.argmin(np.abs(np.log(N / size)))]
            if row.min() < level < row.max():
                found.append((float(D[np.argmin(np.abs(row - level))]), float(size)))
                break
    return found


def _levels(low: float, high: float) -> list[float]:
    """Round numbers for isolines, approximately evenly spaced in the logarithm."""
    if high < 1.5 * low:
        return [float(level) for level in MaxNLocator(6).tick_values(low, high) if low < level < high]
    decades = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    steps = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0) if high < 12 * low else (1.0, 2.0, 5.0)
    return [float(level) for level in np.outer(decades, steps).ravel() if low < level < high]
