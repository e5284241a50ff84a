"""Diagnostics of the form and its parameters: residuals, held-out forecasts, profiles."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from analysis.answers.backtest import HeldOut
from analysis.fitting.likelihood import Likelihood
from analysis.intervals.compare import Comparison
from analysis.intervals.profile import parameter_intervals, profile_rise
from analysis.laws import AMPLITUDES, Array
from analysis.report.figures.style import (
    ALARM,
    COLUMN,
    DATA,
    GREEK,
    MARKERS,
    SIZE,
    colour,
    error_axis,
    marker,
    name_trials,
    new_figure,
    short,
    size_ticks,
    styled,
)

_PROFILE_STEPS = 25


@styled
def held_out(score: HeldOut, level: float, error: str) -> Figure:
    """Forecast over observed error of the held-out runs, with prediction intervals at `level`.

    Args:
        score: The forecasts and their outcomes.
        level: Coverage of the intervals, for the title.
        error: The error's name and unit, from `error_label`.
    """
    figure = new_figure(COLUMN, 1.02 * COLUMN)
    axes = figure.subplots()
    table = score.table
    sizes = np.unique(table["N"])
    for place, size in enumerate(sizes):
        rows = table[table["N"] == size]
        around = np.maximum([rows["predicted"] - rows["low"], rows["high"] - rows["predicted"]], 0)
        axes.errorbar(
            rows["observed"],
            rows["predicted"],
            yerr=around,
            fmt=marker(place),
            color=colour(place, len(sizes)),
            mfc="white",
            lw=0.8,
            capsize=2,
            label=f"N = {short(size)}",
        )
    name_trials(axes, table["observed"], table["predicted"], table.get("trial"))
    missed = table[~table["inside"]]
    if len(missed):
        axes.plot(missed["observed"], missed["predicted"], "x", color=ALARM, ms=6, mew=1.2, label="outside", zorder=4)
    edge = np.array([table[["observed", "low"]].min().min() * 0.95, table[["observed", "high"]].max().max() * 1.05])
    axes.plot(edge, edge, color="0.4", lw=0.8, zorder=0)
    axes.set(xlim=edge, ylim=edge, xlabel=f"observed {error}", ylabel=f"forecast {error}")
    axes.set_title(f"{100 * level:g} % prediction intervals")
    error_axis(axes, "x")
    error_axis(axes, "y")
    axes.legend(loc="upper left", fontsize=6)
    return figure


@styled
def residuals(comparison: Comparison) -> Figure:
    """Residuals of the selected form over the axes that vary, in per cent of the law."""
    points = comparison.points
    percent = 100 * np.expm1(comparison.law.residuals)
    axis = {"N": (points.N, SIZE), "D": (points.D, DATA)}
    drawn = points.axis
    figure = new_figure(COLUMN, 0.75 * COLUMN * len(drawn))
    panels = figure.subplots(len(drawn), 1, sharey=True, squeeze=False)[:, 0]
    for axes, name in zip(panels, drawn, strict=True):
        x, label = axis[name]
        other = "D" if name == "N" else "N"
        by = axis[other][0]
        values = np.unique(by)
        tell = 1 < len(values) <= len(MARKERS)
        for place, value in enumerate(values):
            entry = f"{other} = {short(value)}" if tell else None
            chosen = by == value
            axes.plot(
                x[chosen], percent[chosen], ls="", color=colour(place, len(values)), marker=marker(place), label=entry
            )
        axes.axhline(0, color="0.4", lw=0.8, zorder=0)
        axes.set(xscale="log", xlabel=label)
        size_ticks(axes.xaxis, x)
        if tell:
            axes.legend(fontsize=6, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), columnspacing=1.0)
        axes.set_ylabel("observed − law [%]")
    return figure


@styled
def profiles(comparison: Comparison, *, unit: str = "") -> Figure:
    """Profiles of each parameter: the increase in the sum of squares relative to its threshold.

    The sum of squares is minimised over the other parameters at each value; the interval is where the increase stays below
    1, the threshold of the F test (Bates & Watts 1988, ch. 6). For the objectives "huber" and "l1", which have no such
    test, the bootstrap values are shown instead.

    Args:
        comparison: The fit.
        unit: Unit of the loss, for the axes of the floor and the amplitudes.
    """
    fitted = comparison.law
    names = [name for name in fitted.law.parameters if np.isfinite(fitted.parameters[name])]
    across = min(len(names), 2)
    down = -(-len(names) // across)
    figure = new_figure(COLUMN, 0.5 * COLUMN * down)
    panels = figure.subplots(down, across, squeeze=False, sharey=True).ravel()
    likely = comparison.likelihoods.get(comparison.best)
    inner = parameter_intervals(likely, comparison.level) if likely is not None else {}
    for axes, name in zip(panels, names, strict=False):
        if likely is None:
            _draws(axes, comparison.bootstrap.draws[comparison.best][:, fitted.law.parameters.index(name)])
        else:
            _profile(axes, likely, name, inner[name])
        low, high = comparison.law_intervals[name]
        left, right = axes.get_xlim()
        axes.axvspan(max(low, left), min(high, right), color=colour(1, 4), alpha=0.13, lw=0)
        axes.axvline(fitted.parameters[name], color="0.3", lw=0.8)
        axes.set_xlim(left, right)
        axes.set_xlabel(f"{GREEK.get(name, name)}{f' [{unit}]' if unit and name in AMPLITUDES else ''}")
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    figure.supylabel("rise of the sum of squares / threshold" if likely is not None else "bootstrap refits", fontsize=8)
    return figure


def _profile(axes: Axes, likely: Likelihood, name: str, interval: tuple[float, float]) -> None:
    """The profile of one parameter, from somewhat below its interval to somewhat above it."""
    values = _reach(likely, name, interval)
    t = profile_rise(likely, name, values)
    ends = np.array([end for end in interval if np.isfinite(end) and end > 0 and end != likely.fitted.parameters[name]])
    threshold = np.abs(profile_rise(likely, name, ends)).mean() if len(ends) else np.nan
    axes.plot(values, (t / threshold) ** 2, color=colour(1, 4))
    axes.axhline(1.0, color="0.3", lw=0.8, ls="--")
    axes.set(ylim=(0, 2.0))
    if np.all(values > 0) and values[-1] > 20 * values[0]:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0), numticks=5))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(4))


def _reach(likely: Likelihood, name: str, interval: tuple[float, float]) -> Array:
    """Values of a parameter (k,) that cover its interval, within its bounds."""
    value = likely.fitted.parameters[name]
    place = likely.law.parameters.index(name)
    low = interval[0] if np.isfinite(interval[0]) else value - 2 * (interval[1] - value)
    high = interval[1] if np.isfinite(interval[1]) else value + 2 * (value - low)
    if low > 0 and high > 20 * low:
        step = (high / low) ** 0.2
        return np.geomspace(low / step, high * step, _PROFILE_STEPS)
    step = 0.2 * (high - low)
    first = low - step
    if likely.law.lower[place] >= 0:
        first = max(first, 0.5 * low)
    return np.linspace(first, high + step, _PROFILE_STEPS)


def _draws(axes: Axes, values: Array) -> None:
    """The bootstrap values of one parameter."""
    low, high = np.quantile(values, [0.005, 0.995])
    if low > 0 and high > 20 * low:
        axes.set_xscale("log")
        edges = np.geomspace(low, high, 40)
    else:
        edges = np.linspace(low, max(high, low + 1e-6), 40)
    axes.hist(values, bins=edges.tolist(), color=colour(1, 4), alpha=0.6)
