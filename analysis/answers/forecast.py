"""Forecasts of runs at (N, D): the value, the interval for one new run, and warnings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from analysis.answers.checks import UNLIKELY, lack_of_fit
from analysis.fitting.extrapolation import beyond
from analysis.fitting.likelihood import cell_means
from analysis.intervals.compare import Comparison
from analysis.intervals.predictive import Predictive, predict
from analysis.laws import LAWS, Array, Law
from analysis.points.table import Points
from scaling.errors import UserError

FAR = 4.0
"""A forecast outside the fitted range by more than this factor, in N or in D, is flagged."""

_GRID = 300
_HALVINGS = 40  # precision of a quantile, in bits of the range
_SHIFTS = (np.arange(200) + 0.5) / 200  # quantiles of the error common to all forms


def forecast(comparison: Comparison, N: ArrayLike, D: ArrayLike, S: ArrayLike | None = None) -> pd.DataFrame:
    """Predict single new runs, scored on the same test spectra.

    The value is from the form with the largest weight, see `Extrapolation`. Intervals mix the predictive distributions of all
    forms by their weights, and widen beyond the points: they include the choice of form, the uncertainty of the parameters,
    the scatter of a run, and the error common to all forms in the backtests.

    Args:
        comparison: The fits.
        N: Model sizes, (m,) or a number; the value of x for curves over N.
        D: Numbers of distinct spectra, likewise; the value of x for curves over D.
        S: Samples seen; by default the points' common value.

    Returns:
        One row per run: N, D, value, low, high (one new run), curve_low, curve_high (the law itself), flags (a list of
        warnings), refused. The numbers of a refused forecast are NaN.
    """
    table = prediction_table(comparison, N, D, S)
    table.loc[table["refused"], ["value", "low", "high", "curve_low", "curve_high"]] = np.nan
    return table


def prediction_table(comparison: Comparison, N: ArrayLike, D: ArrayLike, S: ArrayLike | None = None) -> pd.DataFrame:
    """Like `forecast`, but including the numbers of refused forecasts."""
    N, D = np.broadcast_arrays(np.atleast_1d(np.asarray(N, float)), np.atleast_1d(np.asarray(D, float)))
    S = None if S is None else np.broadcast_to(np.asarray(S, float), N.shape)
    for name, values in (("N", N), ("D", D), ("S", N if S is None else S)):
        if not np.all(np.isfinite(values) & (values > 0)):
            raise UserError(f"forecast: {name} must be a positive number")
    value = central(comparison, N, D, S)
    curve, new_run = prediction_intervals(comparison, N, D, S)
    about_law, doubtful = _law_flags(comparison), _doubtful(comparison)
    far = [
        _far(comparison.points, n, d, None if S is None else S[k]) for k, (n, d) in enumerate(zip(N, D, strict=True))
    ]
    return pd.DataFrame(
        {
            "N": N,
            "D": D,
            "value": value,
            "low": new_run[:, 0],
            "high": new_run[:, 1],
            "curve_low": curve[:, 0],
            "curve_high": curve[:, 1],
            "flags": [about_law + each for each in far],
            "refused": np.array([bool(each) and doubtful for each in far]) | ~np.isfinite(new_run).all(axis=1),
        }
    )


def places(points: Points, law: Law, N: Array, D: Array, S: Array | None = None) -> Array:
    """Logarithms (v, m) of a law's variables at (N, D), and S.

    Raises:
        UserError: The law needs the samples seen, and neither they nor the epochs are constant over the points.
    """
    if law.variables == ("x",):
        return np.log(N if points.axis == "N" else D)[None]
    if "S" not in law.variables:
        return np.log(np.stack([N, D]))
    if S is None:
        seen = np.ones(1) if points.S is None else points.S
        if np.ptp(seen) == 0:
            S = np.full(len(D), seen[0])
        elif np.ptp(seen / points.D) < 1e-6 * np.max(seen / points.D):
            S = D * np.mean(seen / points.D)
        else:
            raise UserError(f"forecast: form {law.name!r} needs the samples seen of the run, which differ; give them")
    return np.log(np.stack([N, D, S]))


def central(comparison: Comparison, N: Array, D: Array, S: Array | None = None) -> Array:
    """The loss (m,) at (N, D) by the form with the largest weight in forecasts."""
    fitted = comparison.fits[comparison.extrapolation.leading]
    return fitted.law.value(fitted.theta, places(comparison.points, fitted.law, N, D, S))


def prediction_intervals(comparison: Comparison, N: Array, D: Array, S: Array | None = None) -> tuple[Array, Array]:
    """Intervals (m, 2) of the curve and of one new run at (N, D), each (m,), in the unit of the loss."""
    found = comparison.extrapolation
    share = found.mixed
    growth = found.growth * beyond(comparison.points, N, D, S)
    common = growth[:, None] * stats.t.ppf(_SHIFTS, found.dof)
    if comparison.interval_method == "bootstrap":
        return _bootstrap_intervals(comparison, share, common, N, D, S)
    parts = [
        predict(comparison.likelihoods[form], places(comparison.points, LAWS[form], N, D, S), N, D) for form in share
    ]
    weights = np.array(list(share.values()))
    curve, new_run = (
        np.array([_mixed(kind, weights, k, common[k], comparison.level) for k in range(len(N))])
        for kind in zip(*parts, strict=True)
    )
    # a run scatters about its curve, so its interval contains the curve's, even if approximations make both nearly equal
    new_run = np.stack([np.minimum(new_run[:, 0], curve[:, 0]), np.maximum(new_run[:, 1], curve[:, 1])], axis=1)
    return curve, new_run


def _mixed(parts: Sequence[Predictive], share: Array, place: int, common: Array, level: float) -> Array:
    """The central interval (2,) of a mixture of distributions plus an error common to them, in the unit of the loss.

    Args:
        parts: The distributions.
        share: Their weights.
        place: Index of the place.
        common: Quantiles of the common error, in log loss.
        level: Coverage.
    """
    finite = np.array([np.isfinite(part.logs[place]).all() and np.isfinite(part.t[place]).all() for part in parts])
    if not finite.any():
        return np.full(2, np.nan)
    parts = [part for part, known in zip(parts, finite, strict=True) if known]
    share = share[finite] / share[finite].sum()
    ends = [part.logs[place][[0, -1]] for part in parts]
    nodes = np.unique(np.concatenate([np.linspace(low, high, _GRID) for low, high in ends]))
    alone = np.sum([weight * part.probability(place, nodes) for weight, part in zip(share, parts, strict=True)], axis=0)
    alone = np.maximum.accumulate(alone)
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    if np.ptp(common) == 0:
        return np.exp(np.interp(tails, alone, nodes))
    low, high = np.full(2, nodes[0] + common[0]), np.full(2, nodes[-1] + common[-1])
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        below = np.interp(middle[:, None] - common, nodes, alone, left=0.0, right=1.0).mean(axis=1) < tails
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.exp(high)


def _bootstrap_intervals(
    comparison: Comparison, share: Mapping[str, float], common: Array, N: Array, D: Array, S: Array | None
) -> tuple[Array, Array]:
    """Percentiles of the refits' curves, sampled by the forms' weights, plus common error and run residuals."""
    sample, fitted = comparison.bootstrap, comparison.law
    rng = np.random.default_rng([comparison.seed, 1])
    count = len(sample.chosen)
    chosen = rng.choice(list(share), size=count, p=list(share.values()))
    curves = np.empty((count, len(N)))
    for form in share:
        law, where = LAWS[form], chosen == form
        curves[where] = law.value(sample.draws[form][where], places(comparison.points, law, N, D, S))
    curves *= np.exp(common[:, rng.integers(common.shape[1], size=count)].T)
    cells = len(cell_means(comparison.points, fitted.weights).runs)
    inflation = np.sqrt(cells / max(cells - len(fitted.theta), 1))
    residuals = rng.choice(fitted.residuals, size=curves.shape) * inflation
    tails = [(1 - comparison.level) / 2, (1 + comparison.level) / 2]
    return np.quantile(curves, tails, axis=0).T, np.quantile(curves * np.exp(residuals), tails, axis=0).T


def _doubtful(comparison: Comparison) -> bool:
    """Whether the selected law is known to be wrong or to lack a term, so that it is useless far outside the points."""
    law = comparison.law
    lack = lack_of_fit(law, comparison.points)
    return (lack is not None and lack.p < UNLIKELY) or (law.status == "bound_hit" and "not determined" in law.message)


def _law_flags(comparison: Comparison) -> list[str]:
    law = comparison.law
    lack = lack_of_fit(law, comparison.points)
    words = []
    if lack is not None and lack.p < UNLIKELY:
        words.append(f"lack of fit (p = {lack.p:.2g}): the form misses more than seeds scatter")
    if law.status == "bound_hit":
        words.append(f"bound hit: {law.message}")
    if comparison.weigh == "backtest" and not comparison.extrapolation.splits:
        words.append("the runs are too few for a backtest")
    floor = comparison.law_intervals.get("E")
    if floor is not None and floor[0] <= 0:
        words.append("the floor's interval reaches zero")
    return words


def _far(points: Points, N: float, D: float, S: float | None = None) -> list[str]:
    """Warnings for each axis on which (N, D) lies more than a factor `FAR` outside the fitted points."""
    words = []
    axes = [(name, value, getattr(points, name)) for name, value in (("N", N), ("D", D)) if name in points.axis]
    if S is not None and points.S is not None:
        axes.append(("S", S, points.S))
    for name, value, seen in axes:
        factor = max(value / seen.max(), seen.min() / value)
        if factor > FAR * (1 + 1e-9):
            words.append(f"{name} is {factor:.3g}× outside the data")
    return words
