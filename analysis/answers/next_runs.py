"""Experimental design: which new runs would improve a forecast most per device-hour."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd

from analysis.answers.forecast import places
from analysis.fitting.likelihood import Likelihood, likelihood
from analysis.intervals.compare import Comparison
from analysis.laws import Array
from scaling.errors import UserError

Hours = Callable[[Array, Array], Array]
"""(N (m,), D (m,)) -> device-hours of one run at each, (m,)."""

_BEYOND = (2.0, 4.0)  # candidate factors beyond the largest rung of each axis


def run_hours(cells: pd.DataFrame) -> Hours | None:
    """Device-hours of one trial, from `device_seconds` of the cells: a least-squares power law in N and D.

    Returns:
        The function, or None if no cell has a duration. A search over learning rates costs one trial per rate.
    """
    timed = cells[cells["device_seconds"].astype(float) > 0]
    if not len(timed):
        return None
    logs = np.log(timed[["num_params", "num_spectra"]].to_numpy(float))
    seconds = np.log(timed["device_seconds"].to_numpy(float))
    middle = logs.mean(axis=0)
    slopes = np.linalg.lstsq(logs - middle, seconds - seconds.mean(), rcond=None)[0]  # 0 for an axis that does not vary

    def hours(N: Array, D: Array) -> Array:
        return np.exp(seconds.mean() + (np.log(np.stack([N, D], axis=-1)) - middle) @ slopes) / 3600

    return hours


def next_runs(
    comparison: Comparison,
    target: tuple[float, float],
    hours: Hours,
    candidates: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """The reduction of the law's interval at a target by one more run at each candidate, per device-hour.

    The law is linearised at the fit (D-optimal design with one target: Chaloner & Verdinelli 1995, section 2): with
    Σ the covariance of its parameters and g the gradient of the log loss, a run at x with variance s² reduces the
    variance at the target T, g_Tᵀ Σ g_T, by (g_Tᵀ Σ g_x)² / (s² + g_xᵀ Σ g_x). The selected form is assumed to be right; a run
    that discriminates between forms is worth more than this, and a repeat of a cell that the form misfits is worth less.

    Args:
        comparison: The fits.
        target: (N, D) of the forecast.
        hours: The cost of a run, see `run_hours`.
        candidates: N and D, one row per candidate; by default every pair of the existing rungs and those two
            and four times beyond the largest, except the target itself.

    Returns:
        One row per candidate, the best first: N, D, kind ("repeat" or "new"), hours, shrink (the fraction by which the
        interval at the target narrows), shrink_per_hour.

    Raises:
        UserError: A candidate, the target or its cost is not a positive number.
    """
    points, likely = comparison.points, _likelihood(comparison)
    table = _candidates(comparison, target) if candidates is None else candidates[["N", "D"]].astype(float)
    N, D = np.append(table["N"], target[0]), np.append(table["D"], target[1])
    cost = hours(N[:-1], D[:-1])
    for name, values in (("N", N), ("D", D), ("hours", cost)):
        if not np.all(np.isfinite(values) & (values > 0)):
            raise UserError(f"next runs: {name} of every candidate and of the target must be a positive number")
    slopes, covariance = _linearised(likely, places(points, likely.law, N, D))
    shared = slopes.T @ covariance @ slopes
    variance = likely.run_variance(N[:-1], D[:-1])
    before = shared[-1, -1]
    after = before - shared[-1, :-1] ** 2 / (variance + np.diag(shared)[:-1])
    shrink = 1 - np.sqrt(np.maximum(after, 0.0) / before) if before > 0 else np.zeros(len(cost))
    run = set(zip(points.N, points.D, strict=True))
    kind = ["repeat" if place in run else "new" for place in zip(N[:-1], D[:-1], strict=True)]
    found = pd.DataFrame({"N": N[:-1], "D": D[:-1], "kind": kind, "hours": cost, "shrink": shrink})
    found["shrink_per_hour"] = found["shrink"] / found["hours"]
    return found.sort_values("shrink_per_hour", ascending=False, kind="stable").reset_index(drop=True)


def _likelihood(comparison: Comparison) -> Likelihood:
    """The sum of squares near the selected fit; for robust fits, from the scatter about them."""
    if comparison.best in comparison.likelihoods:
        return comparison.likelihoods[comparison.best]
    return likelihood(replace(comparison.law, objective="lsq"), comparison.points)


def _candidates(comparison: Comparison, target: tuple[float, float]) -> pd.DataFrame:
    rungs = []
    for name in ("N", "D"):
        values = np.unique(getattr(comparison.points, name))
        beyond = [values[-1] * factor for factor in _BEYOND] if name in comparison.points.axis else []
        rungs.append(np.append(values, beyond))
    table = pd.DataFrame([(n, d) for n in rungs[0] for d in rungs[1]], columns=["N", "D"])
    return table[(table["N"] != target[0]) | (table["D"] != target[1])].reset_index(drop=True)


def _linearised(likely: Likelihood, logs: Array) -> tuple[Array, Array]:
    """Gradients at logs (v, m) of the fitted quantity, (p, m), and the covariance of the parameters (p, p)."""
    law, known = likely.law, likely.cells.points.logs(likely.law.variables)
    offsets = law.middle(known)
    theta = law.shifted(likely.fitted.theta, -offsets)
    free = (theta > np.array(law.lower)) & (theta < np.array(law.upper))
    here, there = (likely.slopes(theta, each - offsets[:, None]) * free[:, None] for each in (known, logs))
    size = np.maximum(np.linalg.norm(here, axis=1), 1e-300)[:, None]
    here, there = here / size, there / size
    return there, likely.variance * np.linalg.pinv((here * likely.cells.weights) @ here.T, hermitian=True)
