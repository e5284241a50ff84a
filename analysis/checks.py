"""Was the form right: lack of fit, the forecast of the edge, scores on held-out cells, and trends of the residuals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import stats

from analysis.fit import Fit
from analysis.forecast import UNLIKELY, prediction_intervals, prediction_table
from analysis.laws import Array
from analysis.likelihood import cell_means
from analysis.table import Points

if TYPE_CHECKING:
    from analysis.compare import Comparison


@dataclass(frozen=True, slots=True, kw_only=True)
class LackOfFit:
    """F test of the cells' means about a law against the scatter between seeds.

    Attributes:
        F: variance of the cells' means about the law over that expected from the scatter between seeds.
        dof_lack: cells − parameters.
        dof_pure: runs − cells.
        p: probability of an F as large if the form is right.
        pure_error: standard deviation of log loss between seeds of a cell.
    """

    F: float
    dof_lack: int
    dof_pure: int
    p: float
    pure_error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeScore:
    """How well a form, fitted without the largest N and the largest D, predicts them.

    Attributes:
        cells: how many were left in the fit.
        held: how many runs were predicted.
        inside: how many lie within their prediction interval.
        mean_abs_log_error: mean |log(observed/predicted)|.
        mean_log_error: mean log(observed/predicted): positive where runs came out worse than predicted.
    """

    cells: int
    held: int
    inside: int
    mean_abs_log_error: float
    mean_log_error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """The score of a forecast.

    Attributes:
        table: one row a held-out run: N, D, observed, predicted, low, high, inside, flags.
        inside: how many lie within their interval.
        mean_abs_log_error: mean |log(observed/predicted)|.
        words: the verdict in a sentence or two.
    """

    table: pd.DataFrame
    inside: int
    mean_abs_log_error: float
    words: str


def lack_of_fit(fitted: Fit, points: Points) -> LackOfFit | None:
    """Test a fit against the scatter between seeds (pure error), weights taken into account.

    Returns:
        None unless there are repeats in at least half as many runs as cells, and more cells than parameters.
    """
    cells = cell_means(points, fitted.weights)
    m, p = len(cells.runs), len(fitted.theta)
    if cells.dof_pure < m / 2 or m <= p or not cells.pure_error > 0:
        return None
    squares = float(np.sum(fitted.weights * fitted.residuals**2)) - cells.pure_error * cells.dof_pure
    ratio = squares / (m - p) / cells.pure_error
    logs = np.log(points.loss)
    groups = points.groups
    deviations = logs - (np.bincount(groups, weights=logs) / cells.runs)[groups]
    return LackOfFit(
        F=ratio,
        dof_lack=m - p,
        dof_pure=cells.dof_pure,
        p=float(stats.f.sf(ratio, m - p, cells.dof_pure)),
        pure_error=float(np.sqrt(np.sum(deviations**2) / cells.dof_pure)),
    )


def without_edge(points: Points) -> tuple[Points, Points]:
    """The points without the largest N and the largest D (of those that vary), and those."""
    edge = np.zeros(len(points), bool)
    for name in points.axis:
        values = getattr(points, name)
        edge |= values == values.max()
    return points.take(~edge), points.take(edge)


def edge_score(comparison: Comparison, held: Points) -> EdgeScore:
    """Score the forecasts of a single form, fitted without the edge, of the runs there."""
    fitted = comparison.law
    low, high = prediction_intervals(comparison, held.N, held.D, held.S)[1].T
    error = np.log(held.loss / fitted.law.value(fitted.theta, held.logs(fitted.law.variables)))
    return EdgeScore(
        cells=len(np.unique(comparison.points.groups)),
        held=len(held),
        inside=int(np.sum((low <= held.loss) & (held.loss <= high))),
        mean_abs_log_error=float(np.abs(error).mean()),
        mean_log_error=float(error.mean()),
    )


def held_out_score(comparison: Comparison, held: Points) -> HeldOut:
    """Score the forecast of runs that took no part in the fit.

    Args:
        comparison: fitted without them.
        held: their N, D, loss, and samples seen where the fit knows them.
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
    elif stats.binom.cdf(inside / count * cells, cells, level) < UNLIKELY:  # seeds of a cell fall together
        words += " That is fewer than chance allows: the intervals are too narrow for this extrapolation."
    bias = float(error.mean())
    if count > 1 and abs(bias) > 0.03 and abs(bias) > 0.7 * np.abs(error).mean():
        side = "lower (better)" if bias < 0 else "higher (worse)"
        words += f" The errors are one-sided: the runs came out {100 * abs(np.expm1(bias)):.0f} % {side} than forecast."
    return words


def residual_trends(comparison: Comparison) -> pd.DataFrame:
    """Do the selected form's residuals trend or bend over log N, log D, or their product?

    Each term is added to a linear model of the cells' mean residuals that holds the law's own derivatives, so that
    what the law could still absorb does not count (the score test of an added term).

    Returns:
        One row a term: axis, statistic (Student's t), p.
    """
    fitted, points = comparison.law, comparison.points
    cells = cell_means(points, fitted.weights)
    logs = cells.points.logs(fitted.law.variables)
    centred = logs - logs.mean(axis=1, keepdims=True)
    root = np.sqrt(cells.weights)
    predicted = fitted.law.value(fitted.theta, logs)
    residuals = root * np.log(cells.points.loss / predicted)
    offsets = fitted.law.middle(logs)
    slopes = fitted.law.jacobian(fitted.law.shifted(fitted.theta, -offsets), logs - offsets[:, None]) / predicted * root
    names = points.axis if fitted.law.variables == ("x",) else fitted.law.variables
    terms = {}
    for name, values in zip(names, centred, strict=True):
        terms[f"log {name}"] = values
        terms[f"log² {name}"] = values**2
    if len(names) > 1:
        terms["log N · log D"] = centred[0] * centred[1]
    rows = []
    for name, values in terms.items():
        size = np.linalg.norm(slopes, axis=1, keepdims=True)
        basis = np.linalg.qr((slopes / np.where(size > 0, size, 1.0)).T)[0]
        column = root * values
        column = column - basis @ (basis.T @ column)
        rest = residuals - basis @ (basis.T @ residuals)
        dof, left = len(rest) - len(fitted.theta) - 1, float(column @ column)
        if dof < 1 or left < 1e-6 * float((root * values) @ (root * values)):
            rows.append({"axis": name, "statistic": 0.0, "p": 1.0})  # the law absorbs this term whole
            continue
        slope = float(column @ rest) / left
        error = np.sqrt(max(float(rest @ rest) - slope**2 * left, 0.0) / dof / left)
        statistic = slope / error if error > 0 else 0.0
        rows.append({"axis": name, "statistic": statistic, "p": float(2 * stats.t.sf(abs(statistic), dof))})
    return pd.DataFrame(rows)
