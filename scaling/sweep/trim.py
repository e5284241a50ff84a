"""A grid that fits a budget, and the effect of a smaller grid on a forecast's interval."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from scaling.data.seeds import stable_seed
from scaling.errors import UserError
from scaling.model.ladder import count_parameters
from scaling.study.declaration import Cell, Study

KEPT = 3
"""Minimum number of rungs per axis to fit a law."""
DRAWS = 5
"""Number of simulated studies over which the median interval is taken."""
EQUAL = 1.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """Relative half-width of a forecast's interval, for the law and for one new run; NaN if no law can be fitted."""

    curve: float
    new_run: float

    def describe(self) -> str:
        """Both as text."""
        return (
            "no law can be fitted" if np.isnan(self.curve) else f"law ±{self.curve:.1%}, a new run ±{self.new_run:.1%}"
        )


def trim(study: Study, budget: float, hours: Callable[[Study], dict[Cell, float]]) -> Study:
    """Drop rungs until the hours fit: the dearest width until three are left, then the dearest number of spectra.

    Of rungs with the same cost (within 2 %), as with numbers of spectra when every trial draws the same number, an inner one
    is dropped, so that the grid keeps its range.

    Raises:
        UserError: The budget is not positive, or the smallest grid does not fit it.
    """
    if not 0 < budget < np.inf:
        raise UserError(f"--budget {budget:g}: give device-hours above 0, such as 500")
    while (total := sum((each := hours(study)).values())) > budget:
        widths, sizes = study.widths, study.data.num_spectra
        if len(widths) > KEPT:
            gone = _dearest(widths, each, "width")
            study = dataclasses.replace(study, widths=tuple(width for width in widths if width != gone))
        elif len(sizes) > KEPT:
            gone = _dearest(sizes, each, "num_spectra")
            data = dataclasses.replace(study.data, num_spectra=tuple(size for size in sizes if size != gone))
            study = dataclasses.replace(study, data=data)
        else:
            raise UserError(
                f"--budget {budget:g}: {len(widths)} widths and {len(sizes)} numbers of spectra still take {total:,.1f} device-hours, "
                "and fewer than 3 support no law: give more, or declare a shorter Recipe.budget"
            )
    return study


def _dearest(rungs: tuple[int, ...], hours: dict[Cell, float], axis: str) -> int:
    costs = [sum(spent for cell, spent in hours.items() if getattr(cell, axis) == rung) for rung in rungs]
    dearest = [place for place, cost in enumerate(costs) if cost * EQUAL >= max(costs)]
    return rungs[dearest[len(dearest) // 2]]


def forecast_precision(study: Study, target: tuple[int, int]) -> Precision:
    """Precision of a forecast at (parameters, spectra) from all cells of a grid, with errors from `Study.expected`."""
    import pandas as pd

    from analysis.answers.forecast import prediction_table
    from analysis.intervals.compare import compare
    from analysis.points.table import points_from_columns

    law, recipe, found = study.expected, study.recipe, []
    params = {width: count_parameters(study.model(width)).reach_loss for width in study.widths}
    for draw in range(DRAWS):
        rows = []
        for cell in study.cells():
            chance = np.random.default_rng(stable_seed("forecast", draw, cell.key)).normal()
            error = law.error(params[cell.width], cell.num_spectra) * np.exp(max(law.scatter, 1e-4) * chance)
            seen = recipe.budget.samples or (recipe.budget.epochs or 1) * cell.num_spectra
            rows.append((params[cell.width], cell.num_spectra, cell.seed, seen, error))
        table = pd.DataFrame(rows, columns=["N", "D", "seed", "S", "loss"])
        n, d = (name if table[name].nunique() > 1 else None for name in ("N", "D"))
        try:
            fitted = compare(points_from_columns(table, n, d, "loss", samples_seen="S" if n and d else None))
        except UserError:
            return Precision(curve=float("nan"), new_run=float("nan"))
        at = prediction_table(fitted, *target).iloc[0]
        found.append([(at[f"{kind}high"] - at[f"{kind}low"]) / (2 * at["value"]) for kind in ("curve_", "")])
    curve, new_run = np.median(found, axis=0)
    return Precision(curve=float(curve), new_run=float(new_run))
