"""IsoFLOP profiles: the best size at each compute budget, directly from the runs without a law."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from analysis.answers.parabola import bracketed_optimum
from analysis.intervals.profile import Interval
from analysis.points.cost import Cost
from analysis.points.table import Points

_SAME_BUDGET = 1.05  # runs whose compute differs by less than this factor share an isoFLOP profile
_ONE_BUDGET = 1.25  # each budget spans less than this factor, and the gaps between budgets are larger
_FEWEST_PROFILES, _FEWEST_SIZES = 3, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class IsoFlop:
    """Approach 2 of Hoffmann et al. 2022 (arXiv 2203.15556, section 3.2): the best N per compute, without a law.

    Attributes:
        profiles: One row per compute budget: C, points, N_opt, D_opt, loss_opt (NaN if rejected), bracketed, reason (of
            the rejection; empty if accepted).
        a: Exponent of N* ∝ C^a, and 1 − a that of D*; NaN with fewer than three optima.
        a_interval: Its interval, from the scatter of the optima about the line; infinite if unknown.
        a_log_loss: a from parabolas of log loss instead of loss.
        words: The result in one or two sentences.
    """

    profiles: pd.DataFrame
    a: float
    a_interval: Interval
    a_log_loss: float
    words: str


def isoflop_profiles(runs: pd.DataFrame, level: float = 0.9) -> IsoFlop:
    """Fit a parabola of loss in log N at each compute budget, and a line of log N* over log C.

    Runs whose compute differs by less than 5 % share a profile. An optimum is rejected if it lies outside the sizes
    tried, or if the parabola does not open upwards.

    Args:
        runs: N, D, C and loss of each run; three sizes or more at each budget.
        level: Coverage of the interval.
    """
    runs = runs.sort_values("C", kind="stable")
    budget = _budgets(runs["C"])
    profiles = pd.DataFrame([_profile(group) for _, group in runs.groupby(budget)])
    in_logs = pd.DataFrame([_profile(group.assign(loss=np.log(group["loss"]))) for _, group in runs.groupby(budget)])
    a, a_interval = _slope(profiles["C"], profiles["N_opt"], level)
    a_log_loss = _slope(in_logs["C"], in_logs["N_opt"], level)[0]
    return IsoFlop(
        profiles=profiles,
        a=a,
        a_interval=a_interval,
        a_log_loss=a_log_loss,
        words=_profile_words(profiles, a, a_interval, a_log_loss, level),
    )


def planned_profiles(points: Points, cost: Cost, level: float) -> IsoFlop | None:
    """The profiles of runs planned at a few compute budgets, κ N D; None if they were not planned so.

    Runs count as planned so if at least three well-separated budgets have three or more sizes each, and together contain at
    least half of the runs.

    Args:
        points: The runs; seeds of a cell count as one, by their geometric mean.
        cost: The definition of compute.
        level: Coverage of the intervals.
    """
    if points.axis != "ND" or not cost.defined:
        return None
    frame = (
        pd.DataFrame({"N": points.N, "D": points.D, "loss": np.log(points.loss)})
        .groupby(["N", "D"])
        .mean()
        .reset_index()
    )
    frame["C"] = cost.per_cell * frame["N"] * frame["D"]
    frame = frame.sort_values("C", kind="stable", ignore_index=True)
    budget = frame.groupby(_budgets(frame["C"]))
    least, most = budget["C"].transform("min"), budget["C"].transform("max")
    planned = frame[(budget["N"].transform("nunique") >= _FEWEST_SIZES) & (most < _ONE_BUDGET * least)]
    starts = least[planned.index].unique()
    apart = bool(np.all(starts[1:] > _ONE_BUDGET * most[planned.index].unique()[:-1]))
    if len(starts) < _FEWEST_PROFILES or not apart or len(planned) < len(frame) / 2:
        return None
    return isoflop_profiles(planned.assign(loss=np.exp(planned["loss"])), level)


def _budgets(C: pd.Series) -> pd.Series:
    """The number of each run's budget, (n,), for ascending compute (n,)."""
    return (_SAME_BUDGET * C.shift() < C).cumsum()


def _profile(runs: pd.DataFrame) -> dict[str, object]:
    """The optimum of one compute budget."""
    best = bracketed_optimum(np.log(runs["N"].to_numpy()), runs["loss"].to_numpy())
    return {
        "C": float(np.exp(np.log(runs["C"]).mean())),
        "points": len(runs),
        "N_opt": np.exp(best.x),
        "D_opt": np.exp(np.log(runs["N"] * runs["D"]).mean() - best.x),
        "loss_opt": best.y,
        "bracketed": not best.reason,
        "reason": best.reason,
    }


def _slope(C: pd.Series, optimum: pd.Series, level: float) -> tuple[float, Interval]:
    """The slope of log optimum over log C, with its t-interval; NaN with fewer than three known optima."""
    known = optimum.notna().to_numpy()
    if known.sum() < _FEWEST_PROFILES:
        return float("nan"), (float("-inf"), float("inf"))
    line = stats.linregress(np.log(C[known]), np.log(optimum[known]))
    reach = float(stats.t.ppf(0.5 + level / 2, known.sum() - 2) * line.stderr)
    return float(line.slope), (float(line.slope) - reach, float(line.slope) + reach)


def _profile_words(profiles: pd.DataFrame, a: float, interval: Interval, a_log_loss: float, level: float) -> str:
    refused = profiles[~profiles["bracketed"]]
    words = (
        f"{len(profiles) - len(refused)} of {len(profiles)} compute budgets have an optimum between the sizes tried. "
    )
    if len(refused):
        reasons = "; ".join(f"C = {row.C:.3g} ({row.reason})" for row in refused.itertuples())
        words += f"Refused: {reasons}. "
    if np.isnan(a):
        return words + "An exponent needs three optima."
    return words + (
        f"N* grows as C^a with a in [{interval[0]:.3f}, {interval[1]:.3f}] ({100 * level:g} %), best {a:.3f}; "
        f"parabolas of log loss give {a_log_loss:.3f}."
    )
