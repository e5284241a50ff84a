"""Common style of all figures: column widths, colours, markers, ticks, and saving."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from urllib.parse import quote

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator
from numpy.typing import ArrayLike, NDArray

from scaling.files import output
from scaling.results import measure_of

COLUMN = 8.5 / 2.54
"""Width of one column of a journal, in inches."""

SIZE = "N, model parameters"
DATA = "D, training spectra"
COMPUTE = "C, training compute [FLOP]"

MARKERS = "osD^vPX<>*"
ALARM = "#D55E00"
"""Vermilion of the colour-blind safe palette of Okabe & Ito (2008)."""

TERMS = {
    "irreducible": "#999999",
    "capacity": "#0072B2",
    "data": "#E69F00",
    "repetition": "#009E73",
}
"""Colours of the parts of an error budget, from the same palette."""

GREEK = {"alpha": "α", "beta": "β", "beta2": "β₂", "gamma": "γ", "rho": "ρ", "E0": "E₀"}
"""Greek names of parameters."""

FORMATS = ("svg", "pdf", "png")
_UNDATED = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}

_DPI = 300
_STYLE: Any = {
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.titlesize": 8,
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.5,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.5,
    "pdf.fonttype": 42,  # TrueType: text stays text, and the fonts are embedded
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
}

P = ParamSpec("P")
R = TypeVar("R")


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Run a drawing function with the style of all figures, without changing Matplotlib's global settings."""

    @functools.wraps(draw)
    def inner(*arguments: P.args, **options: P.kwargs) -> R:
        with mpl.rc_context(_STYLE):
            return draw(*arguments, **options)

    return inner


def new_figure(width: float, height: float) -> Figure:
    """A new figure of (width, height) in inches; touches no global state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


@styled
def save(figure: Figure, folder: Path, name: str, formats: Sequence[str] = FORMATS) -> dict[str, Path]:
    """Write `name`.svg, .pdf and .png (300 dpi), or some of them, into `folder`, each atomically.

    The files depend only on the figure: no date is written.

    Returns:
        Maps format to path.
    """
    paths = {}
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # the layout is computed once, not per format
        for kind in formats:
            path = folder / f"{name}.{kind}"
            with output(path, starts=None) as temporary:
                figure.savefig(temporary, format=kind, dpi=_DPI, metadata=_UNDATED.get(kind), transparent=kind == "svg")
            paths[kind] = path
    return paths


def name_trials(axes: Axes, x: ArrayLike, y: ArrayLike, trials: Iterable[str] | None) -> None:
    """Overlay each point with an invisible link to its trial, `#trial`, for tooltips in an SVG; None adds none."""
    if trials is not None:
        spots = axes.scatter(x, y, s=90, alpha=0, linewidths=0, zorder=9)
        spots.set_urls([f"#{quote(trial)}" for trial in trials])


def short(value: float) -> str:
    """Format a size for people: 512, 1k (1024), 16k (16384), 8.8k (8833), 4.8M."""
    exact = int(value)
    if value == exact and exact >= 1024 and exact & (exact - 1) == 0:
        power, letter = max((p, c) for p, c in ((10, "k"), (20, "M"), (30, "G")) if exact >> p)
        return f"{exact >> power}{letter}"
    for unit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * unit:
            return f"{value / unit:.2g}{letter}" if value < 9.95 * unit else f"{value / unit:.0f}{letter}"
    return f"{value:.4g}"


def error_label(cells: pd.DataFrame, split: str = "test") -> str:
    """The label of an error axis: "test MAE of log g [dex]"."""
    measure = measure_of(cells)
    return f"{split} {measure.name} of {label_name(cells)}{f' [{measure.unit}]' if measure.unit else ''}"


def label_name(cells: pd.DataFrame) -> str:
    """The predicted label, formatted for people."""
    return ", ".join(cells["label"].astype(str).unique()).replace("log_g", "log g")


def colour(place: int, count: int) -> tuple[float, float, float, float]:
    """Viridis without its palest end: ordered, perceptually uniform and colour-blind safe."""
    return mpl.colormaps["viridis"](0.8 * place / max(count - 1, 1))


def marker(place: int) -> str:
    """The marker of the series with this index."""
    return MARKERS[place % len(MARKERS)]


def series_handles(values: Iterable[float], symbol: str) -> list[Line2D]:
    """Legend entries "N = 8.8k" for series that differ in colour and marker."""
    values = list(values)
    return [
        Line2D([], [], ls="", marker=marker(k), color=colour(k, len(values)), label=f"{symbol} = {short(v)}")
        for k, v in enumerate(values)
    ]


def panels_legend(figure: Figure, handles: list[Any], spare: NDArray[Any]) -> None:
    """The legend of a multi-panel figure: in an unused panel if there is one, otherwise above all panels."""
    for axes in spare:
        axes.set_visible(False)
    if len(spare):
        spare[0].set_visible(True)
        spare[0].axis("off")
        spare[0].legend(handles=handles, loc="center")
    else:
        figure.legend(handles=handles, loc="outside upper center", ncols=3)


def size_ticks(axis: Axis, values: ArrayLike, *, text: Callable[[float], str] = short, most: int = 6) -> None:
    """Ticks at the values that occur, in plain numbers, without those that would overlap."""
    distinct = np.unique(np.asarray(values, float))
    apart = np.log(distinct[-1] / distinct[0]) / most
    kept = [float(distinct[0])]
    for value in distinct[1:]:
        if np.log(value / kept[-1]) >= 0.999 * apart:
            kept.append(float(value))
    axis.set_major_locator(FixedLocator(kept))
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axis.set_minor_locator(NullLocator())


def error_axis(axes: Axes, which: str) -> None:
    """A logarithmic error axis with plain numbers."""
    axes.set_xscale("log") if which == "x" else axes.set_yscale("log")
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = sorted(axis.get_view_interval())
    subs: tuple[float, ...] = (1.0, 2.0, 5.0)
    if high < 50 * low:
        subs = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0) if high < 5 * low else (1.0, 2.0, 3.0, 5.0)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    axis.set_minor_formatter(NullFormatter())
    axis.set_minor_locator(NullLocator())
