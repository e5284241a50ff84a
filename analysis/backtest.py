"""What the points would have forecast from their smaller part, and what happened: a test of forecasts that needs no new run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.checks import HeldOut, held_out_score
from analysis.compare import Comparison, compare
from analysis.laws import Array
from analysis.table import MIN_CELLS, MIN_DISTINCT, Points
from scaling.errors import UserError

SHARES = (0.5, 0.7)
"""Of the runs, by compute, that are fitted; the others are forecast."""
_REPLICATES = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Backtest:
    """A forecast of the larger runs from the smaller ones.

    Attributes:
        share: of the runs that was asked to be fitted.
        fitted: how many were: runs of one compute stay together.
        form: the form that was selected on them.
        reach: the largest compute that was forecast, over the largest that was fitted.
        score: of the forecast.
    """

    share: float
    fitted: int
    form: str
    reach: float
    score: HeldOut

    @property
    def words(self) -> str:
        """What happened, in a sentence or two."""
        return (
            f"Fitted to the {self.fitted} smallest runs by compute, {self.form} forecasts the others, up to {self.reach:.3g} "
            f"times as large: {self.score.words}"
        )


def backtests(comparison: Comparison, shares: tuple[float, ...] = SHARES) -> list[Backtest]:
    """Fit the same forms in the same way to the smallest runs by compute, and score the forecasts of the others.

    Args:
        comparison: the fits to all points.
        shares: of the runs that are fitted; a share whose runs are too few, or support no law, is left out.
    """
    points, law, found = comparison.points, comparison.law, list[Backtest]()
    compute = relative_compute(points)
    for share in shares:
        small = smallest(compute, share)
        part, rest = points.take(small), points.take(~small)
        if (
            not len(rest)
            or part.axis != points.axis
            or not _enough(part)
            or small.sum() in {each.fitted for each in found}
        ):
            continue
        try:
            earlier = compare(
                part,
                list(comparison.fits),
                objective=law.objective,
                delta=law.delta,
                replicates=min(comparison.replicates, _REPLICATES),
                level=comparison.level,
                seed=comparison.seed,
            )
            score = held_out_score(earlier, rest)
        except UserError:  # no form fits so few
            continue
        reach = float(compute.max() / compute[small].max())
        found.append(Backtest(share=share, fitted=int(small.sum()), form=earlier.best, reach=reach, score=score))
    return found


def relative_compute(points: Points) -> Array:
    """The compute of each run (n,) but for a factor: N times the samples seen, or distinct spectra where those are not known."""
    return points.N * (points.D if points.S is None else points.S)


def smallest(compute: Array, share: float) -> NDArray[np.bool_]:
    """Which runs (n,) are the smallest part by compute; runs of one compute are on one side."""
    last = np.sort(compute)[max(0, int(np.ceil(share * len(compute))) - 1)]
    return compute <= last * (1 + 1e-9)


def _enough(points: Points) -> bool:
    """Whether a law may be fitted, by the rule that holds for a table."""
    sizes = min(len(np.unique(getattr(points, name))) for name in points.axis)
    return sizes >= MIN_DISTINCT and len(np.unique(points.groups)) >= MIN_CELLS[points.axis]
