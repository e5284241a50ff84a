"""Why the curve stops, in each cell: the parts of its error as stacked bars."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from analysis.answers.budget import ErrorBudget
from analysis.report.figures.observed import Observed
from analysis.report.figures.style import COLUMN, DATA, TERMS, name_trials, new_figure, panels_legend, short, styled

_PANELS = 6
_WIDTH = 0.72


@styled
def error_budgets(budgets: Sequence[ErrorBudget], observed: Observed, level: float) -> Figure:
    """The parts of the error in each cell, stacked, with one panel per model size.

    Each part has its own interval: a line beside the top of its bar, as long as the part's interval.

    Args:
        budgets: One per cell (N, D), in any order, from one fit; at most six evenly chosen model sizes are shown.
        observed: The measured errors, drawn as points over the bars.
        level: Coverage of the intervals, for the legend.
    """
    sizes = np.unique([budget.N for budget in budgets])
    if len(sizes) > _PANELS:
        sizes = sizes[np.linspace(0, len(sizes) - 1, _PANELS).round().astype(int)]
    across = len(sizes) if len(sizes) < 3 else 2 if len(sizes) <= 4 else 3
    down = -(-len(sizes) // across)
    figure = new_figure(COLUMN, (0.8, 0.5, 0.45)[across - 1] * COLUMN * down + 0.5)
    panels = figure.subplots(down, across, sharey=True, squeeze=False).ravel()
    data = np.unique([budget.D for budget in budgets])
    present: list[str] = []
    for axes, size in zip(panels, sizes, strict=False):
        for budget in (each for each in budgets if size == each.N):
            place = float(np.searchsorted(data, budget.D))
            base = 0.0
            count = len(budget.table)
            for k, part in enumerate(budget.table.itertuples()):
                present += [part.term] if part.term not in present else []
                axes.bar(place, part.value, _WIDTH, bottom=base, color=TERMS[part.term])
                side = place + _WIDTH * (0.6 * (k + 0.5) / count - 0.3)
                axes.plot([side, side], base + np.array([part.low, part.high]), color="black", lw=0.8)
                base += part.value
        some = size == observed.N
        for held, face in ((False, "black"), (True, "white")):
            here = some & (observed.held == held)
            places = np.searchsorted(data, observed.D[here])
            axes.plot(places, observed.loss[here], "o", color="black", mfc=face, ms=3, mew=0.7, zorder=4)
        places, names = np.searchsorted(data, observed.D[some]), observed.trials
        name_trials(axes, places, observed.loss[some], None if names is None else names[some])
        axes.set_xticks(range(len(data)), [short(D) if k % across == 0 else "" for k, D in enumerate(data)])
        axes.set_title(f"N = {short(size)}")
    panels[0].set_ylim(0, 1.25 * max(observed.loss.max(), max(budget.table["value"].sum() for budget in budgets)))
    figure.supxlabel(DATA, fontsize=8)
    figure.supylabel(observed.error, fontsize=8)
    marks: list[Patch | Line2D] = [Patch(color=TERMS[term], label=term) for term in present]
    marks.append(Line2D([], [], ls="", marker="o", ms=3, color="black", label="measured"))
    if observed.held.any():
        marks.append(Line2D([], [], ls="", marker="o", ms=3, mfc="white", color="black", label="held out"))
    marks.append(Line2D([], [], color="black", lw=0.8, label=f"{100 * level:g} % interval"))
    panels_legend(figure, marks, panels[len(sizes) :])
    return figure
