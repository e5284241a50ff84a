"""Figures of a study: each function returns a Matplotlib `Figure` of its own and touches no global state."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from analysis.compare import Comparison, HeldOut
from analysis.intervals import Bootstrap

SIZE = "N, model parameters"
DATA = "D, training spectra"

_MARKERS = "osD^vPX<>*"
_STEPS = 60
_ALARM = "#D55E00"  # vermilion of the Okabe–Ito palette
_SYMBOL = {"num_params": "N", "num_spectra": "D"}
_AXIS_LABEL = {"num_params": SIZE, "num_spectra": DATA}


def short(value: float) -> str:
    """A size as people say it: 512, 1k (1024), 16k (16384), 8.8k (8833), 4.8M."""
    exact = int(value)
    if value == exact and exact >= 1024 and exact & (exact - 1) == 0:
        power, letter = max((p, c) for p, c in ((10, "k"), (20, "M"), (30, "G")) if exact >> p)
        return f"{exact >> power}{letter}"
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * unit:
            return f"{value / unit:.2g}{letter}" if value < 9.95 * unit else f"{value / unit:.0f}{letter}"
    return f"{value:.4g}"


def error_label(cells: pd.DataFrame, split: str = "test") -> str:
    """The label of an error axis: "test MAE of log g [dex]"."""
    return f"{split} MAE of {label_name(cells)} [dex]"


def label_name(cells: pd.DataFrame) -> str:
    """The label that was predicted, as people write it."""
    return ", ".join(cells["label"].astype(str).unique()).replace("log_g", "log g")


def error_against_data(cells: pd.DataFrame, comparison: Comparison | None) -> Figure:
    """Error against D, one curve a model size, with the law and the band of its curve.

    Args:
        cells: `CellTable.cells` of one family; held-out cells are drawn open.
        comparison: the fitted law, or None where there is none.
    """
    return _curves(cells, comparison, x="num_spectra", by="num_params")


def error_against_size(cells: pd.DataFrame, comparison: Comparison | None) -> Figure:
    """Error against N, one curve a number of spectra; as `error_against_data`."""
    return _curves(cells, comparison, x="num_params", by="num_spectra")


def held_out(score: HeldOut, level: float, label: str) -> Figure:
    """Observed against forecast error of the held-out runs, with prediction intervals at `level`.

    Args:
        score: the forecasts and what came out.
        level: coverage of the intervals, for the axis label.
        label: the error's name and unit, as `error_label` gives it.
    """
    figure = Figure(figsize=(5.6, 5.0), layout="constrained")
    axes = figure.subplots()
    table = score.table
    sizes = np.unique(table["N"])
    for place, size in enumerate(sizes):
        rows = table[table["N"] == size]
        around = [rows["predicted"] - rows["low"], rows["high"] - rows["predicted"]]
        axes.errorbar(
            rows["observed"],
            rows["predicted"],
            yerr=np.maximum(around, 0),
            fmt=_MARKERS[place % len(_MARKERS)],
            color=_colour(place, len(sizes)),
            mfc="white",
            capsize=3,
            label=f"N = {short(size)}",
        )
    missed = table[~table["inside"]]
    if len(missed):
        axes.plot(missed["observed"], missed["predicted"], "x", color=_ALARM, ms=11, mew=1.6, label="outside")
    edge = np.array([table[["observed", "low"]].min().min() * 0.95, table[["observed", "high"]].max().max() * 1.05])
    axes.plot(edge, edge, color="0.4", lw=1, zorder=0)
    axes.set(xlim=edge, ylim=edge, xlabel=f"observed {label}", ylabel=f"forecast {label}")
    axes.set_title(f"forecast with {100 * level:g} % prediction intervals", fontsize=10)
    _error_axis(axes, "x")
    _error_axis(axes, "y")
    axes.legend(frameon=False, loc="upper left")
    return figure


def residuals(comparison: Comparison) -> Figure:
    """Residuals of the best form against N and D, in per cent of the law."""
    figure = Figure(figsize=(8.6, 3.6), layout="constrained")
    points = comparison.points
    percent = 100 * np.expm1(comparison.law.residuals)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, x, label, other, name in (
        (panels[0], points.N, SIZE, points.D, "D"),
        (panels[1], points.D, DATA, points.N, "N"),
    ):
        values = np.unique(other)
        for place, value in enumerate(values):
            chosen = other == value
            style = {"color": _colour(place, len(values)), "marker": _MARKERS[place % len(_MARKERS)]}
            tell = len(values) <= len(_MARKERS)
            axes.plot(x[chosen], percent[chosen], ls="", **style, label=f"{name} = {short(value)}" if tell else None)
        axes.axhline(0, color="0.4", lw=1, zorder=0)
        axes.set_xscale("log")
        axes.set_xlabel(label)
        _size_ticks(axes.xaxis, x)
        if len(values) <= len(_MARKERS):
            axes.legend(frameon=False, fontsize=7, ncols=2)
    panels[0].set_ylabel(f"observed − law ({comparison.best}) [%]")
    return figure


def learning_rates(rows: pd.DataFrame) -> Figure | None:
    """Validation error against learning rate, a panel a model size; None if no cell tried several.

    Each line is one cell, its best trial is filled; trials that diverged or failed are crosses at the top.

    Args:
        rows: the results table of one family.
    """
    keys = ["num_params", "num_spectra", "seed"]
    tried = rows[rows.groupby(keys)["lr"].transform("nunique") >= 2]
    if not (tried["status"] == "done").any():
        return None
    sizes, data = np.unique(tried["num_params"]), np.unique(tried["num_spectra"])
    across = len(sizes) if len(sizes) <= 3 else min(-(-len(sizes) // 2), 4)
    down = -(-len(sizes) // across)
    figure = Figure(figsize=(3.1 * across + 1.2, 2.7 * down + 0.4), layout="constrained")
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, size in zip(panels, sizes, strict=False):
        here = tried[tried["num_params"] == size]
        for (_, spectra, _), trials in here.groupby(keys):
            place = int(np.searchsorted(data, spectra))
            done = trials[trials["status"] == "done"].sort_values("lr")
            colour, marker = _colour(place, len(data)), _MARKERS[place % len(_MARKERS)]
            axes.plot(done["lr"], done["val_mae_dex"], color=colour, marker=marker, mfc="white", lw=1, ms=5)
            best = done.nsmallest(1, "val_mae_dex")
            axes.plot(best["lr"], best["val_mae_dex"], color=colour, marker=marker, ms=5, ls="")
        lost = here[here["status"] != "done"]
        axes.plot(lost["lr"], np.full(len(lost), 0.97), "x", color=_ALARM, transform=axes.get_xaxis_transform())
        axes.set(xscale="log", yscale="log")
        axes.tick_params(labelsize=8)
        axes.set_title(f"N = {short(size)}", fontsize=9)
    _size_ticks(panels[0].xaxis, tried["lr"].to_numpy(float), text=lambda value: f"{value:g}", most=4)
    _error_axis(panels[0], "y")
    for axes in panels[len(sizes) :]:
        axes.set_visible(False)
    for axes in panels[max(len(sizes) - across, 0) : len(sizes)]:
        axes.tick_params(labelbottom=True)
    figure.supxlabel("learning rate", fontsize=10)
    figure.supylabel(error_label(rows, "validation"), fontsize=10)
    figure.legend(handles=_handles(data, "D"), loc="outside right upper", frameon=False, fontsize=8)
    return figure


def save(figure: Figure, folder: Path, name: str) -> tuple[Path, Path]:
    """Write `name`.svg and `name`.png (150 dpi) into `folder`, each published by renaming; the SVG is reproducible."""
    FigureCanvasAgg(figure)
    paths = []
    with mpl.rc_context({"svg.hashsalt": name}):
        for kind, metadata in (("svg", {"Date": None}), ("png", None)):
            path = folder / f"{name}.{kind}"
            partial = path.with_name(f".{path.name}.partial")
            figure.savefig(partial, format=kind, dpi=150, metadata=metadata)
            partial.replace(path)
            paths.append(path)
    return paths[0], paths[1]


def _curves(cells: pd.DataFrame, comparison: Comparison | None, *, x: str, by: str) -> Figure:
    figure = Figure(figsize=(7.6, 4.8), layout="constrained")
    axes = figure.subplots()
    values = np.unique(cells[by])
    span = np.geomspace(cells[x].min() / 1.15, cells[x].max() * 1.15, _STEPS)
    for place, value in enumerate(values):
        colour = _colour(place, len(values))
        if comparison is not None:
            held = np.full(_STEPS, float(value))
            n, d = (held, span) if by == "num_params" else (span, held)
            low, high = _band(comparison.bootstrap, n, d)
            axes.fill_between(span, low, high, color=colour, alpha=0.13, lw=0)
            axes.plot(span, comparison.law.predict(n, d), color=colour, lw=1.2)
        here = cells[cells[by] == value]
        for out, face in ((False, colour), (True, "white")):
            some = here[here["held_out"].astype(bool) == out]
            marker = _MARKERS[place % len(_MARKERS)]
            axes.plot(some[x], some["test_mae_dex"], ls="", marker=marker, color=colour, mfc=face, mew=1.3, zorder=3)
    axes.set(xscale="log", yscale="log", xlabel=_AXIS_LABEL[x], ylabel=error_label(cells))
    _size_ticks(axes.xaxis, cells[x].to_numpy(float))
    _error_axis(axes, "y")
    axes.grid(alpha=0.2)
    handles = _handles(values, _SYMBOL[by])
    if cells["held_out"].any():
        handles.append(Line2D([], [], ls="", marker="o", color="0.3", mfc="white", label="held out"))
    if comparison is not None:
        percent = 100 * comparison.bootstrap.level
        handles.append(Line2D([], [], color="0.3", label=f"law and {percent:g} % band"))
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9)
    return figure


def _band(bootstrap: Bootstrap, n: np.ndarray, d: np.ndarray) -> np.ndarray:
    tail = (1 - bootstrap.level) / 2
    return np.quantile(bootstrap.curves(n, d, new_run=False), [tail, 1 - tail], axis=0)


def _handles(values: Iterable[float], symbol: str) -> list[Line2D]:
    values = list(values)
    return [
        Line2D(
            [],
            [],
            ls="",
            marker=_MARKERS[k % len(_MARKERS)],
            color=_colour(k, len(values)),
            label=f"{symbol} = {short(v)}",
        )
        for k, v in enumerate(values)
    ]


def _colour(place: int, count: int) -> tuple[float, float, float, float]:
    """Viridis without its palest end: ordered, even in lightness and readable by the colour-blind."""
    return mpl.colormaps["viridis"](0.88 * place / max(count - 1, 1))


def _size_ticks(axis: Axis, values: np.ndarray, *, text: Callable[[float], str] = short, most: int = 9) -> None:
    """Ticks at the values that occur, in plain numbers, leaving out those that would overlap."""
    distinct = np.unique(values)
    apart = np.log(distinct[-1] / distinct[0]) / most
    kept = [float(distinct[0])]
    for value in distinct[1:]:
        if np.log(value / kept[-1]) >= 0.999 * apart:
            kept.append(float(value))
    axis.set_major_locator(FixedLocator(kept))
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axis.set_minor_locator(NullLocator())


def _error_axis(axes: Axes, which: str) -> None:
    """A logarithmic error axis with plain numbers."""
    axes.set_xscale("log") if which == "x" else axes.set_yscale("log")
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = sorted(axis.get_view_interval())
    subs = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if high < 12 * low else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
    axis.set_minor_locator(NullLocator())
