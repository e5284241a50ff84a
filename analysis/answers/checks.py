"""Checks of the selected form: lack of fit, and trends of the residuals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from analysis.fitting.fit import Fit
from analysis.fitting.likelihood import cell_means
from analysis.intervals.compare import Comparison
from analysis.points.table import Points

UNLIKELY = 0.05
"""Significance level for lack of fit and for too few held-out runs inside their intervals."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LackOfFit:
    """F test of the cells' means about a law against the scatter between seeds.

    Attributes:
        F: Variance of the cells' means about the law divided by its expectation from the scatter between seeds.
        dof_lack: cells − parameters.
        dof_pure: runs − cells.
        p: Probability of at least this F if the form is right.
        pure_error: Standard deviation of log loss between seeds of a cell.
    """

    F: float
    dof_lack: int
    dof_pure: int
    p: float
    pure_error: float


def lack_of_fit(fitted: Fit, points: Points) -> LackOfFit | None:
    """Test a fit against the scatter between seeds (pure error), taking weights into account.

    Returns:
        None unless there are at least half as many repeats as cells, and more cells than parameters.
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


def residual_trends(comparison: Comparison) -> pd.DataFrame:
    """Test whether the selected form's residuals have a trend or curvature over log N, log D, or their product.

    Each term is added to a linear model of the cells' mean residuals that contains the law's own derivatives, so that
    what the law could still absorb is excluded (the score test of an added term).

    Returns:
        One row per term: axis, statistic (Student's t), p.
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
            rows.append({"axis": name, "statistic": 0.0, "p": 1.0})  # the law fully absorbs this term
            continue
        slope = float(column @ rest) / left
        error = np.sqrt(max(float(rest @ rest) - slope**2 * left, 0.0) / dof / left)
        statistic = slope / error if error > 0 else 0.0
        rows.append({"axis": name, "statistic": statistic, "p": float(2 * stats.t.sf(abs(statistic), dof))})
    return pd.DataFrame(rows)
