"""What a run at (N, D) will give: a value, the interval of one new run, and what to beware of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from analysis.laws import Array, Law
from analysis.likelihood import cell_means
from analysis.predictive import Predictive, predict
from analysis.table import Points
from scaling.errors import UserError

if TYPE_CHECKING:
    from analysis.compare import Comparison

FAR = 4.0
"""A forecast further outside the fitted range than this factor, in N or in D, is flagged."""

UNLIKELY = 0.05
"""A result less likely than this by chance is called one: lack of fit, or too few held-out runs inside."""

_NEGLIGIBLE = 1e-3  # weight of a form below which it is left out of the mixture
_GRID = 600


def forecast(comparison: Comparison, N: ArrayLike, D: ArrayLike, S: ArrayLike | None = None) -> pd.DataFrame:
    """Predict single new runs, scored on the same test spectra.

    The value is that of the selected form. Intervals mix the predictive distributions of all forms by their Akaike
    weights, so that they hold the choice of form, the uncertainty of the parameters and the scatter of a run.

    Args:
        comparison: the fits.
        N: model sizes, (m,) or a number; the value of x for curves over N.
        D: numbers of distinct spectra, likewise; the value of x for curves over D.
        S: samples seen; what the points have in common if not given.

    Returns:
        One row a run: N, D, value, low, high (one new run), curve_low, curve_high (the law itself), flags (a list of
        words), refused. The numbers of a refused forecast are NaN.
    """
    table = prediction_table(comparison, N, D, S)
    table.loc[table["refused"], ["value", "low", "high", "curve_low", "curve_high"]] = np.nan
    return table


def flags(comparison: Comparison, N: float, D: float, S: float | None = None) -> list[str]:
    """What to beware of in a forecast at (N, D), in words; empty if nothing."""
    return _law_flags(comparison) + _far(comparison.points, N, D, S)


def prediction_table(comparison: Comparison, N: ArrayLike, D: ArrayLike, S: ArrayLike | None = None) -> pd.DataFrame:
    """As `forecast`, with the numbers of refused forecasts too."""
    N, D = np.broadcast_arrays(np.atleast_1d(np.asarray(N, float)), np.atleast_1d(np.asarray(D, float)))
    S = None if S is None else np.broadcast_to(np.asarray(S, float), N.shape)
    for name, values in (("N", N), ("D", D), ("S", N if S is None else S)):
        if not np.all(np.isfinite(values) & (values > 0)):
            raise UserError(f"forecast: {name} must be a positive number")
    law = comparison.law.law
    value = law.value(comparison.law.theta, places(comparison.points, law, N, D, S))
    curve, new_run = prediction_intervals(comparison, N, D, S)
    about_law = _law_flags(comparison)
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
            "refused": [bool(each) and _doubtful(comparison) for each in far],
        }
    )


def places(points: Points, law: Law, N: Array, D: Array, S: Array | None = None) -> Array:
    """Logarithms (v, m) of a law's variables at (N, D), and S.

    Raises:
        UserError: if the law needs the samples seen, and the points have neither one number of them nor one of epochs.
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


def prediction_intervals(comparison: Comparison, N: Array, D: Array, S: Array | None = None) -> tuple[Array, Array]:
    """Intervals (m, 2) of the curve and of one new run at (N, D), each (m,), in the unit of the loss."""
    if comparison.interval_method == "bootstrap":
        return _bootstrap_intervals(comparison, N, D, S)
    kinds: tuple[list[Predictive], list[Predictive]] = ([], [])
    weights = []
    for form, likely in comparison.likelihoods.items():
        if comparison.weights[form] < _NEGLIGIBLE:
            continue
        weights.append(comparison.weights[form])
        at = places(comparison.points, likely.law, N, D, S)
        for kind, found in zip(kinds, predict(likely, at, N, D), strict=True):
            kind.append(found)
    share = np.array(weights) / np.sum(weights)
    curve, new_run = (np.array([_mixed(kind, share, k, comparison.level) for k in range(len(N))]) for kind in kinds)
    return curve, new_run


def _mixed(parts: list[Predictive], share: Array, place: int, level: float) -> Array:
    """The central interval (2,) of a mixture of distributions, in the unit of the loss."""
    ends = [part.logs[place][[0, -1]] for part in parts]
    nodes = np.concatenate([np.linspace(low, high, _GRID) for low, high in ends])
    nodes = np.unique(nodes)
    chance = np.sum(
        [weight * part.probability(place, nodes) for weight, part in zip(share, parts, strict=True)], axis=0
    )
    return np.exp(np.interp([(1 - level) / 2, (1 + level) / 2], np.maximum.accumulate(chance), nodes))


def _bootstrap_intervals(comparison: Comparison, N: Array, D: Array, S: Array | None) -> tuple[Array, Array]:
    """Percentiles of the replicates' curves, each of the form it selects, and with residuals of single runs added."""
    sample, fitted = comparison.bootstrap, comparison.law
    curves = np.empty((len(sample.chosen), len(N)))
    for form in set(sample.chosen):
        law, where = comparison.fits[form].law, sample.chosen == form
        curves[where] = law.value(sample.draws[form][where], places(comparison.points, law, N, D, S))
    cells = len(cell_means(comparison.points, fitted.weights).runs)
    inflation = np.sqrt(cells / max(cells - len(fitted.theta), 1))
    residuals = np.random.default_rng([comparison.seed, 1]).choice(fitted.residuals, size=curves.shape) * inflation
    tails = [(1 - comparison.level) / 2, (1 + comparison.level) / 2]
    return np.quantile(curves, tails, axis=0).T, np.quantile(curves * np.exp(residuals), tails, axis=0).T


def _doubtful(comparison: Comparison) -> bool:
    """Whether the selected law is known to be wrong, or lacks a term: then it says nothing far outside."""
    lack, law = comparison.lack_of_fit, comparison.law
    return (lack is not None and lack.p < UNLIKELY) or (law.status == "bound_hit" and "not determined" in law.message)


def _law_flags(comparison: Comparison) -> list[str]:
    lack, law = comparison.lack_of_fit, comparison.law
    words = []
    if lack is not None and lack.p < UNLIKELY:
        words.append(f"lack of fit (p = {lack.p:.2g}): the form misses more than seeds scatter")
    if law.status == "bound_hit":
        words.append(f"bound hit: {law.message}")
    floor = comparison.law_intervals.get("E")
    if floor is not None and floor[0] <= 0:
        words.append("the floor's interval reaches zero")
    return words


def _far(points: Points, N: float, D: float, S: float | None = None) -> list[str]:
    """Words for each axis on which (N, D) lies more than a factor `FAR` outside the fitted points."""
    words = []
    axes = [(name, value, getattr(points, name)) for name, value in (("N", N), ("D", D)) if name in points.axis]
    if S is not None and points.S is not None:
        axes.append(("S", S, points.S))
    for name, value, seen in axes:
        factor = max(value / seen.max(), seen.min() / value)
        if factor > FAR * (1 + 1e-9):
            words.append(f"{name} is {factor:.3g}× outside the data")
    return words
