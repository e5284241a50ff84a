"""Forecasts compared with outcomes: for held-out runs, and for the larger points forecast from the smaller ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from analysis.answers.checks import UNLIKELY
from analysis.answers.forecast import prediction_table
from analysis.fitting.extrapolation import smallest
from analysis.intervals.compare import Comparison, compare_alike
from analysis.laws import Array
from analysis.points.table import Points, large_enough
from scaling.errors import UserError

SHARES = (0.5, 0.7)
"""Fractions of the runs, by N·D, that are fitted; the others are forecast."""
_REPLICATES = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """The score of a forecast.

    Attributes:
        table: One row per held-out run: N, D, observed, predicted, low, high, inside, flags; for held-out cells also trial.
        inside: Number of runs within their interval.
        mean_abs_log_error: Mean |log(observed/predicted)|.
        words: The verdict in one or two sentences.
    """

    table: pd.DataFrame
    inside: int
    mean_abs_log_error: float
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Backtest:
    """A forecast of the larger runs from the smaller ones.

    Attributes:
        share: Requested fraction of fitted runs.
        fitted: Actual number of fitted runs; runs of one size N·D are not separated.
        form: The form with the largest weight in their forecast.
        reach: The largest forecast N·D divided by the largest fitted one.
        score: The score of the forecast.
    """

    share: float
    fitted: int
    form: str
    reach: float
    score: HeldOut

    @property
    def brief(self) -> str:
        """How far the larger runs are missed, in one sentence."""
        return (
            f"From the {self.fitted} smallest runs, those up to {self.reach:.3g} times as large (by N·D) are missed by "
            f"{100 * self.score.mean_abs_log_error:.0f} %."
        )

    @property
    def words(self) -> str:
        """The outcome in one or two sentences."""
        return (
            f"Fitted to the {self.fitted} smallest runs by N·D, the laws ({self.form} weighs most) forecast the others, up to "
            f"{self.reach:.3g} times as large: {self.score.words}"
        )


def backtests(comparison: Comparison, shares: tuple[float, ...] = SHARES) -> list[Backtest]:
    """Fit the same forms with the same settings to the smallest runs by N·D, and score the forecasts of the others.

    Args:
        comparison: Fits to all points.
        shares: Fractions of fitted runs; a share with too few runs, or whose runs support no law, is skipped.
    """
    points, found = comparison.points, list[Backtest]()
    size = points.N * points.D
    for share in shares:
        small = smallest(size, share)
        part, rest = points.take(small), points.take(~small)
        if (
            not len(rest)
            or part.axis != points.axis
            or not large_enough(part)
            or small.sum() in {each.fitted for each in found}
        ):
            continue
        try:
            fewer = min(comparison.replicates, _REPLICATES)
            earlier = compare_alike(comparison, part, list(comparison.fits), fewer)
            score = held_out_score(earlier, rest)
        except UserError:  # too few runs for any form
            continue
        reach = float(size.max() / size[small].max())
        found.append(
            Backtest(share=share, fitted=int(small.sum()), form=earlier.extrapolation.leading, reach=reach, score=score)
        )
    return found


def held_out_score(comparison: Comparison, held: Points) -> HeldOut:
    """Score the forecast of runs that were excluded from the fit.

    Args:
        comparison: A comparison fitted without them.
        held: Their N, D and loss, and samples seen if the fit has them.
    """
    table = prediction_table(comparison, held.N, held.D, held.S).rename(columns={"value": "predicted"})
    table = table[["N", "D", "predicted", "low", "high", "flags"]]
    table.insert(2, "observed", held.loss)
    table["inside"] = (table["low"] <= held.loss) & (held.loss <= table["high"])
    inside = int(table["inside"].sum())
    error = np.log(held.loss / table["predicted"].to_numpy())
    return HeldOut(
        table=table,
        inside=inside,
        mean_abs_log_error=float(np.abs(error).mean()),
        words=_verdict(inside, error, len(np.unique(held.groups)), comparison.level),
    )


def _verdict(inside: int, error: Array, cells: int, level: float) -> str:
    count = len(error)
    words = (
        f"{inside} of the {count} held-out runs lie within their {100 * level:g} % interval "
        f"(about {level * count:.0f} expected); the forecast misses by {100 * np.abs(error).mean():.0f} % on average."
    )
    if inside < count / 2:
        words += " The forecast failed: most held-out runs fall outside, so do not plan with this law."
    elif stats.binom.cdf(inside / count * cells, cells, level) < UNLIKELY:  # seeds of a cell are correlated
        words += " That is fewer than chance allows: the intervals are too narrow for this extrapolation."
    bias = float(error.mean())
    if count > 1 and abs(bias) > 0.03 and abs(bias) > 0.7 * np.abs(error).mean():
        side = "lower (better)" if bias < 0 else "higher (worse)"
        words += f" The errors are one-sided: the runs came out {100 * abs(np.expm1(bias)):.0f} % {side} than forecast."
    return words
