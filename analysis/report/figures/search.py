"""The search over learning rates: every trial, a parabola per cell, and whether its optimum is bracketed."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.answers.parabola import bracketed_optimum
from analysis.report.figures.style import (
    ALARM,
    COLUMN,
    colour,
    error_axis,
    error_label,
    marker,
    name_trials,
    new_figure,
    panels_legend,
    series_handles,
    short,
    size_ticks,
    styled,
)
from scaling.results import measure_of

_CELL = ["num_params", "num_spectra", "seed"]


@styled
def learning_rates(rows: pd.DataFrame) -> Figure | None:
    """Validation error over learning rate, one panel per model size; None if no cell tried several.

    The best trial of a cell is filled. A cell with at least three learning rates has a parabola of log error over log
    learning rate; its optimum is a star if trials on both sides are worse, otherwise a triangle at the edge of the search
    that points to where it may lie. Trials that were pruned, diverged or failed are crosses at the top.

    Args:
        rows: The results table of one family.
    """
    tried = rows[rows.groupby(_CELL)["lr"].transform("nunique") >= 2]
    if not (tried["status"] == "done").any():
        return None
    error = measure_of(rows).val
    sizes, data = np.unique(tried["num_params"]), np.unique(tried["num_spectra"])
    across = len(sizes) if len(sizes) < 3 else 2 if len(sizes) <= 4 else 3
    down = -(-len(sizes) // across)
    figure = new_figure(COLUMN, (0.8, 0.5, 0.45)[across - 1] * COLUMN * down + 0.7)
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, size in zip(panels, sizes, strict=False):
        here = tried[tried["num_params"] == size]
        done = here[(here["status"] == "done") & (here[error] > 0)]
        for (_, spectra, _), trials in done.groupby(_CELL):
            _draw_cell(axes, trials, error, int(np.searchsorted(data, spectra)), len(data))
        name_trials(axes, done["lr"], done[error], done["trial"])
        lost = here[here["status"] != "done"]
        axes.plot(lost["lr"], np.full(len(lost), 0.97), "x", color=ALARM, transform=axes.get_xaxis_transform())
        axes.set(xscale="log", yscale="log")
        axes.set_title(f"N = {short(size)}")
    size_ticks(panels[0].xaxis, tried["lr"], text="{:.2g}".format, most=5 - across)
    error_axis(panels[0], "y")
    for axes in panels[max(len(sizes) - across, 0) : len(sizes)]:
        axes.tick_params(labelbottom=True)
    figure.supxlabel("learning rate", fontsize=8)
    figure.supylabel(error_label(rows, "validation"), fontsize=8)
    panels_legend(figure, [*series_handles(data, "D"), *_marks()], panels[len(sizes) :])
    return figure


def _draw_cell(axes: Axes, done: pd.DataFrame, error: str, place: int, count: int) -> None:
    """Draw one cell's finished trials with their parabola; `error` is the column of the validation error."""
    shade = colour(place, count)
    axes.plot(done["lr"], done[error], ls="", color=shade, marker=marker(place), mfc="white", mew=0.9)
    best = done.nsmallest(1, error)
    axes.plot(best["lr"], best[error], ls="", color=shade, marker=marker(place))
    x, y = np.log(done["lr"].to_numpy(float)), np.log(done[error].to_numpy(float))
    if len(np.unique(x)) < 3:
        order = np.argsort(x)
        axes.plot(np.exp(x[order]), np.exp(y[order]), color=shade, lw=0.7)
        return
    middle = x.mean()
    parabola = np.polyfit(x - middle, y, 2)
    span = np.linspace(x.min(), x.max(), 40)
    axes.plot(np.exp(span), np.exp(np.polyval(parabola, span - middle)), color=shade, lw=0.7)
    optimum = bracketed_optimum(x, y)
    if not optimum.reason:
        axes.plot(np.exp(optimum.x), np.exp(optimum.y), "*", color="black", ms=6, zorder=4)
        return
    edge = min(x.min(), x.max(), key=lambda each: np.polyval(parabola, each - middle))
    towards = "<" if edge == x.min() else ">"
    axes.plot(np.exp(edge), np.exp(np.polyval(parabola, edge - middle)), towards, color=ALARM, ms=6, zorder=4)


def _marks() -> list[Line2D]:
    return [
        Line2D([], [], ls="", marker="*", color="black", label="optimum"),
        Line2D([], [], ls="", marker=">", color=ALARM, label="not bracketed"),
        Line2D([], [], ls="", marker="x", color=ALARM, label="pruned or failed"),
    ]
