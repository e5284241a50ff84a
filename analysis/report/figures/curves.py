"""Error against data, model size and compute, with the law, the band of its curve and the frontier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullLocator
from numpy.typing import NDArray

from analysis.answers.forecast import forecast, places, prediction_table
from analysis.intervals.compare import Comparison
from analysis.laws import Array
from analysis.points.anchors import Anchor
from analysis.report.figures.observed import Observed
from analysis.report.figures.style import (
    ALARM,
    COLUMN,
    COMPUTE,
    DATA,
    SIZE,
    colour,
    error_axis,
    marker,
    name_trials,
    new_figure,
    series_handles,
    short,
    size_ticks,
    styled,
)
from scaling.errors import UserError
from scaling.results import measure_of

if TYPE_CHECKING:
    from analysis.answers.allocation import Path
    from analysis.answers.baselines import Baseline

_ANCHORS = "*ph8"
_BASELINES = "Xd>"
_NAME = 40  # maximum length of an anchor's name in a column
_REACH = 4.0  # how far beyond the largest D the law is drawn, as a factor
_DEPTH = 4.0  # how far below the lowest error a floor is drawn, as a factor
_STEPS = 60
_NODES = 6  # places at which a band is computed; its width is interpolated between them


@styled
def error_against_data(
    observed: Observed,
    comparison: Comparison | None,
    anchors: Sequence[Anchor] = (),
    baselines: Sequence[Baseline] = (),
    limit: float | None = None,
) -> Figure:
    """Error over D, one curve per model size, with the law and its band, the forecast beyond the data, and the floor.

    Args:
        observed: The errors; held-out ones are drawn open.
        comparison: The fitted law over N and D, or None.
        anchors: Scores of external models, drawn with their standard error and named below the axis.
        baselines: Other families, in grey, with their own laws.
        limit: The information limit of the test spectra, if known.
    """
    return _curves(observed, comparison, "D", anchors, baselines, limit)


@styled
def error_against_size(observed: Observed, comparison: Comparison | None, anchors: Sequence[Anchor] = ()) -> Figure:
    """Error over N, one curve per number of spectra; see `error_against_data`."""
    return _curves(observed, comparison, "N", anchors)


@styled
def error_against_compute(observed: Observed, path: Path | None = None) -> Figure | None:
    """Error over training compute, one line per model size, with the frontier.

    The frontier is the lowest error measured with at most that compute. The compute-optimal path of the law is drawn
    with its band, if there is one.

    Returns:
        None if the compute of the runs is unknown, or the same for all.
    """
    if observed.flops is None or np.ptp(observed.flops) == 0:
        return None
    figure = new_figure(COLUMN, 0.95 * COLUMN)
    axes = figure.subplots()
    sizes = np.unique(observed.N)
    for place, size in enumerate(sizes):
        some = size == observed.N
        spent = np.unique(np.stack([observed.flops[some], observed.D[some]]), axis=1)
        mean = [observed.loss[some & (observed.flops == C) & (observed.D == D)].mean() for C, D in spent.T]
        axes.plot(spent[0], mean, color=colour(place, len(sizes)), lw=0.7)
        _draw_points(axes, observed.flops, observed, some, place, len(sizes))
    order = np.argsort(observed.flops)
    best = np.minimum.accumulate(observed.loss[order])
    axes.step(observed.flops[order], best, where="post", color="0.2", lw=1.0, ls="--", zorder=1)
    handles = [*series_handles(sizes, "N"), Line2D([], [], color="0.2", lw=1.0, ls="--", label="best so far")]
    if path is not None:
        axes.fill_between(path.table["C"], path.table["loss_low"], path.table["loss_high"], color="0.8", lw=0, zorder=0)
        axes.plot(path.table["C"], path.table["loss"], color="black", lw=1.4, zorder=1)
        handles.append(Line2D([], [], color="black", lw=1.4, label="compute-optimal"))
    axes.set(xscale="log", yscale="log", xlabel=COMPUTE, ylabel=observed.error)
    axes.xaxis.set_minor_locator(NullLocator())
    if observed.flops.max() < 100 * observed.flops.min():  # too short for a tick at every power of ten
        size_ticks(axes.xaxis, observed.flops, text="{:.1e}".format, most=3)
    error_axis(axes, "y")
    axes.grid()
    _legend(figure, handles, observed)
    return figure


@styled
def one_curve(comparison: Comparison, *, error: str, x: str) -> Figure:
    """A curve of one variable: its points, the selected law with its band, also beyond the points, and the floor.

    Args:
        comparison: Fit to points of which only N or only D varies.
        error: The error's name and unit.
        x: The variable's name and unit.
    """
    points = comparison.points
    values = points.N if points.axis == "N" else points.D
    span = np.geomspace(values.min() / 1.2, values.max() * 10, _STEPS)
    table = prediction_table(comparison, span, span)
    figure = new_figure(COLUMN, 0.95 * COLUMN)
    axes = figure.subplots()
    axes.fill_between(span, table["low"], table["high"], color=colour(1, 4), alpha=0.15, lw=0)
    axes.fill_between(span, table["curve_low"], table["curve_high"], color=colour(1, 4), alpha=0.35, lw=0)
    inside = span <= values.max()
    axes.plot(span[inside], table["value"][inside], color=colour(1, 4))
    axes.plot(span[~inside], table["value"][~inside], color=colour(1, 4), ls=(0, (3, 2)))
    axes.plot(values, points.loss, "o", color="black", zorder=3)
    percent = f"{100 * comparison.level:g} %"
    handles: list[Line2D | Patch] = [
        Line2D([], [], ls="", marker="o", color="black", label="measured"),
        Line2D([], [], color=colour(1, 4), label=f"law ({comparison.best}); dashed: beyond the points"),
        Patch(color=colour(1, 4), alpha=0.5, label=f"{percent} of the law"),
        Patch(color=colour(1, 4), alpha=0.15, label=f"{percent} of one new run"),
    ]
    floor = comparison.law.parameters.get("E")
    bottom, top = _seen(table["value"].to_numpy(), points.loss, room=1.15)
    if floor is not None:
        low, high = np.clip(comparison.intervals[comparison.best]["E"], bottom, top)
        axes.axhspan(low, high, color="0.85", alpha=0.6, lw=0, zorder=0)
        axes.axhline(floor, color="0.35", lw=1, ls=":", zorder=1)
        handles.append(Line2D([], [], color="0.35", lw=1, ls=":", label=f"floor E, shaded: its {percent} interval"))
    axes.set(xscale="log", xlabel=x, ylabel=error, xlim=(span[0], span[-1]), ylim=(bottom, top))
    size_ticks(axes.xaxis, np.append(values, span[-1]), most=9)
    error_axis(axes, "y")
    figure.legend(handles=handles, loc="outside upper center", ncols=1)
    return figure


def _curves(
    observed: Observed,
    comparison: Comparison | None,
    along: Literal["N", "D"],
    anchors: Sequence[Anchor],
    baselines: Sequence[Baseline] = (),
    limit: float | None = None,
) -> Figure:
    figure = new_figure(COLUMN, 0.95 * COLUMN)
    axes = figure.subplots()
    x, by, symbol = (observed.D, observed.N, "N") if along == "D" else (observed.N, observed.D, "D")
    values, reach = np.unique(by), 1.1 if comparison is None else _REACH
    for place, value in enumerate(values):
        shade = colour(place, len(values))
        some = by == value
        span = np.geomspace(x[some].min() / 1.1, x.max() * reach if along == "D" else x[some].max() * 1.1, _STEPS)
        beyond = span > 1.1 * x[some].max()
        held = np.full(_STEPS, value)
        at = (held, span) if along == "D" else (span, held)
        drawn = None if comparison is None else _law_and_band(comparison, *at)
        if drawn is not None:
            law, low, high = drawn
            axes.fill_between(span, low, high, color=shade, alpha=0.18, lw=0)
            axes.plot(span[~beyond], law[~beyond], color=shade)
            axes.plot(span[beyond], law[beyond], color=shade, ls=(0, (3, 2)))
        _draw_points(axes, x, observed, some, place, len(values))
    named = [_draw_baseline(axes, each, place) for place, each in enumerate(baselines)]
    named += [_draw_anchor(axes, anchor, along, place) for place, anchor in enumerate(anchors)]
    axes.set(xscale="log", yscale="log", xlabel=DATA if along == "D" else SIZE, ylabel=observed.error)
    handles = series_handles(values, symbol)
    if comparison is not None:
        handles.append(Line2D([], [], color="0.3", label=f"law, {100 * comparison.level:g} % band"))
    if along == "D":
        handles += _draw_floor(axes, comparison, limit, float(observed.loss.min()))
    ticks = [*x, *(anchor.num_spectra if along == "D" else anchor.num_params for anchor in anchors)]
    size_ticks(axes.xaxis, [*ticks, x.max() * reach] if along == "D" and comparison is not None else ticks, most=8)
    error_axis(axes, "y")
    axes.grid()
    _legend(figure, handles, observed)
    if named:
        figure.legend(handles=named, loc="outside lower center", ncols=1 if anchors else 3)
    return figure


def _draw_floor(axes: Axes, comparison: Comparison | None, limit: float | None, lowest: float) -> list[Line2D]:
    """The law's floor with its interval, and the information limit, unless they are far below all measurements."""
    bottom, handles = lowest / _DEPTH, list[Line2D]()
    floor = None if comparison is None else comparison.law.parameters.get("E")
    if comparison is not None and floor is not None and floor > bottom:
        low, high = comparison.intervals[comparison.best]["E"]
        axes.axhspan(max(low, bottom), min(high, lowest), color="0.5", alpha=0.2, lw=0, zorder=0)
        handles.append(axes.axhline(floor, color="0.35", lw=1, ls=":", zorder=1, label="floor E of the law"))
    if limit is not None and limit > bottom:
        handles.append(axes.axhline(limit, color="black", lw=1.4, zorder=1, label="information limit"))
    return handles


def _draw_baseline(axes: Axes, baseline: Baseline, place: int) -> Line2D:
    """Draw a baseline's errors over D, with its law as a dashed line; returns the legend entry."""
    look: dict[str, Any] = {"color": "0.45", "marker": _BASELINES[place % len(_BASELINES)], "mfc": "white", "mew": 0.9}
    D = baseline.cells["num_spectra"].to_numpy(float)
    axes.plot(D, baseline.cells[measure_of(baseline.cells).test], ls="", zorder=2, **look)
    if baseline.law is not None:
        span = np.geomspace(D.min() / 1.1, D.max() * 1.1, _STEPS)
        found = baseline.law.law
        axes.plot(
            span, found.law.value(found.theta, np.log(span)[None]), color="0.45", lw=0.9, ls=(0, (4, 2)), zorder=1
        )
    return Line2D([], [], ls=(0, (4, 2)), lw=0.9, label=baseline.family, **look)


def _draw_anchor(axes: Axes, anchor: Anchor, along: Literal["N", "D"], place: int) -> Line2D:
    """Draw an anchor with its standard error; returns its legend entry, with the value on the other axis."""
    x, other = anchor.num_spectra, f"N = {short(anchor.num_params)}"
    if along == "N":
        x, other = anchor.num_params, f"D = {short(anchor.num_spectra)}"
    axes.errorbar(x, anchor.test_mae_dex, yerr=anchor.test_mae_sem_dex, color=ALARM, lw=0.9, capsize=1.5, zorder=5)
    look: dict[str, Any] = {
        "ls": "",
        "marker": _ANCHORS[place % len(_ANCHORS)],
        "ms": 9,
        "color": ALARM,
        "mec": "black",
        "mew": 0.5,
    }
    axes.plot(x, anchor.test_mae_dex, zorder=6, **look)
    return Line2D([], [], label=f"{anchor.name[:_NAME]}, {other}", **look)


def _law_and_band(comparison: Comparison, N: Array, D: Array) -> tuple[Array, Array, Array] | None:
    """The law's curve at (N, D), (m,), with the ends of the forecast's interval for it, which may mix in other forms.

    Returns:
        None if the law needs the samples seen and these differ between runs: there is then no single curve to draw.
    """
    fitted = comparison.law
    nodes = np.linspace(0, len(N) - 1, _NODES).round().astype(int)
    try:
        table = forecast(comparison, N[nodes], D[nodes])
        value = fitted.law.value(fitted.theta, places(comparison.points, fitted.law, N, D))
    except UserError:
        return None
    here = np.arange(len(N))
    low, high = (np.interp(here, nodes, np.log(table[end] / value[nodes])) for end in ("curve_low", "curve_high"))
    value = np.where(np.isfinite(low + high), value, np.nan)  # no line where the forecast is refused
    return value, value * np.exp(low), value * np.exp(high)


def _draw_points(axes: Axes, x: Array, observed: Observed, some: NDArray[np.bool_], place: int, count: int) -> None:
    """Draw the selected errors over x: filled if fitted, open if held out."""
    shade = colour(place, count)
    for held, face in ((False, shade), (True, "white")):
        here = some & (observed.held == held)
        axes.plot(x[here], observed.loss[here], ls="", marker=marker(place), color=shade, mfc=face, mew=0.9, zorder=3)
    name_trials(axes, x[some], observed.loss[some], None if observed.trials is None else observed.trials[some])


def _legend(figure: Figure, handles: list[Line2D], observed: Observed) -> None:
    if observed.held.any():
        handles.append(Line2D([], [], ls="", marker="o", color="0.3", mfc="white", label="held out"))
    figure.legend(handles=handles, loc="outside upper center", ncols=3, columnspacing=1.2)


def _seen(*values: Array, room: float) -> tuple[float, float]:
    """Limits of an axis that contains all values, with a margin as a factor."""
    every = np.concatenate([each[np.isfinite(each) & (each > 0)] for each in values])
    return float(every.min() / room), float(every.max() * room)
