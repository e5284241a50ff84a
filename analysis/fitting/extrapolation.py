"""Extrapolation error of each form, measured by fitting the smaller points and forecasting the larger ones.

A form that fits well inside the data may be wrong beyond it, and no goodness of fit shows by how much. So forms are weighted by
how well they forecast the larger points from the smaller ones (leave-future-out validation: Bürkner, Gabry & Vehtari 2020,
arXiv 1902.06281), and a forecast's spread grows with its distance from the data as the errors of those forecasts did.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.fitting.fit import Fit, fit
from analysis.fitting.likelihood import at_bound, inverse_products
from analysis.fitting.weights import run_weights
from analysis.laws import Array
from analysis.points.table import Points, large_enough

SHARES = (0.5, 0.6, 0.7, 0.8)
"""Fractions of the runs, by N·D, to which the forms are fitted; the others are forecast."""

PRIOR_SHARE, PRIOR_DOF = 0.15, 1.5
"""Prior before any backtest: the error's growth per decade of N·D beyond the points, and its weight in forecasts.

The growth is this share of the decrease of the loss itself per decade. Chosen on 86 forecasts of the larger runs from the
smaller ones in 15 public families of runs, for which 90 % intervals then cover 90 % (62 % when AICc alone decides); in the
lowest family 75 %."""

FEWEST_CELLS = 6
"""A part with fewer cells than this is not used as a backtest: almost any form fits it."""

AS_MANY_CELLS = 10
"""Maximum number of cells that AICc counts (a tempered likelihood: Grünwald & van Ommen 2017, arXiv 1412.3730).

A form that is only approximately true gains certainty with every cell without becoming truer."""

_NEGLIGIBLE = 0.02  # forms with a smaller weight are left out of forecasts
_SAME = 0.01  # decades within which runs count as the same size
_OVERLAP = 0.5  # share of new information in a further split, since the forecasts of splits share runs


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Forecasts of the larger points from the smaller ones.

    Attributes:
        fitted: Number of fitted runs.
        distances: Distance of each other run beyond those, in decades, (m,), see `beyond`.
        errors: Maps each form to log(observed / forecast) of the other runs, (m,).
        variances: Maps each form to the variance that its fit predicts for these errors, (m,).
    """

    fitted: int
    distances: Array
    errors: dict[str, Array]
    variances: dict[str, Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class Extrapolation:
    """Results of the backtests for forecasts beyond the points.

    Attributes:
        splits: The backtests in which all forms of `weights` took part; empty if there are too few points.
        weights: Maps each form to its weight in a forecast; they add up to 1.
        growth: Standard deviation of the error common to all forms, in log loss per decade beyond the points.
        dof: Degrees of freedom of that estimate.
    """

    splits: list[Split]
    weights: dict[str, float]
    growth: float
    dof: float

    @property
    def leading(self) -> str:
        """The form with the largest weight."""
        return max(self.weights, key=self.weights.__getitem__)

    @property
    def mixed(self) -> dict[str, float]:
        """The weights of the forms that a forecast mixes; they add up to 1."""
        kept = {form: weight for form, weight in self.weights.items() if weight >= _NEGLIGIBLE}
        return {form: weight / sum(kept.values()) for form, weight in kept.items()}

    @property
    def words(self) -> str:
        """How forecasts are made, in one or two sentences."""
        grows = (
            f"an error common to all forms is added, {100 * self.growth:.2g} % for each factor of ten in N, D or N·D"
        )
        if np.isinf(self.dof):
            return "Forecasts weigh the forms by AICc, as if one of them were true everywhere."
        if not self.splits:
            return (
                "The runs are too few for a backtest: forecasts weigh the forms by AICc, and beyond the runs "
                f"{grows}, as public studies show."
            )
        fitted = ", ".join(str(split.fitted) for split in self.splits)
        return (
            f"Forecasts weigh the forms by how they forecast the larger runs from the {fitted} smallest by N·D, and by AICc; "
            f"beyond the runs {grows}."
        )

    @property
    def errors(self) -> dict[str, float]:
        """Root mean square of the log errors of each form, with equal weight for all splits."""
        return {form: float(np.sqrt(_mean_square(self.splits, form))) for form in self.weights if self.splits}


def extrapolation(points: Points, fits: Mapping[str, Fit], aicc: Mapping[str, float]) -> Extrapolation:
    """Weight forms by how well they extrapolate, and estimate how their common error grows.

    A form's log weight is −½ (t·AICc + K·log of its mean squared error over K splits), with t = `AS_MANY_CELLS` over the number of
    cells: each split counts as one independent forecast. Forms that cannot be fitted to the smallest of the splits are excluded;
    without any split, the weights are Akaike's. The growth combines the excess of the mixture's squared errors over the fits'
    expectation, averaged over the splits, with `prior_growth` at the weight of `PRIOR_DOF`.

    Args:
        points: The fitted points.
        fits: Fits of the usable forms to all points, with one objective.
        aicc: Their corrected Akaike criterion.
    """
    splits = [_split(points, small, fits) for small in _parts(points)]
    forms = list(fits)
    while splits:
        able = [form for form in fits if all(form in split.errors for split in splits)]
        if able:
            forms = able
            break
        splits = splits[1:]  # drop the split with the fewest runs
    cells = len(np.unique(points.groups))
    score = np.array([aicc[form] for form in forms]) * (min(1.0, AS_MANY_CELLS / cells) if splits else 1.0)
    if splits:
        floor = np.finfo(float).tiny
        score += len(splits) * np.log([max(_mean_square(splits, form), floor) for form in forms])
    share = np.exp(-0.5 * (score - score.min()))
    weights = dict(zip(forms, (share / share.sum()).tolist(), strict=True))
    count = (1 - _OVERLAP) + _OVERLAP * len(splits) if splits else 0.0
    excess = float(np.mean([_growth(split, weights) for split in splits])) if splits else 0.0
    dof = PRIOR_DOF + count
    growth = float(np.sqrt((PRIOR_DOF * prior_growth(points) ** 2 + count * excess) / dof))
    return Extrapolation(splits=splits, weights=weights, growth=growth, dof=dof)


def prior_growth(points: Points) -> float:
    """`PRIOR_SHARE` times std(log loss)/std(log10 N·D), or over std(log10 N) if N·D is constant."""
    size = float(np.std(np.log10(points.N * points.D)))
    if size < _SAME:
        size = float(np.std(np.log10(points.N)))
    return PRIOR_SHARE * float(np.std(np.log(points.loss))) / size


def beyond(points: Points, N: Array, D: Array, S: Array | None = None) -> Array:
    """Distance in decades (m,) of a run outside the points: the largest of those in N, D, N·D and S; 0 inside."""
    axes = [(N, points.N), (D, points.D)] + ([] if S is None or points.S is None else [(S, points.S)])
    outside = [np.log10(N * D / np.max(points.N * points.D))]
    for value, seen in axes:
        outside += [np.log10(value / seen.max()), np.log10(seen.min() / value)]
    return np.maximum(np.max(np.stack(outside), axis=0), 0.0)


def smallest(size: Array, share: float) -> NDArray[np.bool_]:
    """Mask (n,) of the smallest runs; runs of one size are never separated."""
    last = np.sort(size)[max(0, int(np.ceil(share * len(size))) - 1)]
    return size <= last * (1 + 1e-9)


def _parts(points: Points) -> list[NDArray[np.bool_]]:
    """The distinct smaller parts that support a law, the smallest first."""
    found: list[NDArray[np.bool_]] = []
    for share in SHARES:
        small = smallest(points.N * points.D, share)
        part = points.take(small)
        new = not found or small.sum() > found[-1].sum()
        enough = large_enough(part) and len(np.unique(part.groups)) >= FEWEST_CELLS
        if new and not small.all() and part.axis == points.axis and enough:
            found.append(small)
    return found


def _split(points: Points, small: NDArray[np.bool_], fits: Mapping[str, Fit]) -> Split:
    """Fit every form to the small runs with the same settings, and forecast the others."""
    part, rest = points.take(small), points.take(~small)
    cells = len(np.unique(part.groups))
    errors, variances = {}, {}
    for form, whole in fits.items():
        weights = run_weights(part).weights if whole.objective == "lsq" else None
        found = fit(whole.law, part, objective=whole.objective, delta=whole.delta, weights=weights)
        if found.usable and cells > len(found.theta):
            errors[form] = np.log(rest.loss) - np.log(found.law.value(found.theta, rest.logs(found.law.variables)))
            variances[form] = _variance(found, part, rest)
    distances = beyond(part, rest.N, rest.D, rest.S)
    return Split(fitted=int(small.sum()), distances=distances, errors=errors, variances=variances)


def _variance(fitted: Fit, points: Points, rest: Points) -> Array:
    """Variance of log loss of new runs (m,), from the scatter of the fitted ones and the curvature of the fit."""
    law, logs = fitted.law, points.logs(fitted.law.variables)
    offsets = law.middle(logs)
    theta = law.shifted(fitted.theta, -offsets)

    def slopes(at: Array) -> Array:
        return law.jacobian(theta, at - offsets[:, None]) / law.value(theta, at - offsets[:, None])

    known = slopes(logs) * np.sqrt(fitted.weights)
    known[at_bound(law, theta)] = 0.0
    cells = len(np.unique(points.groups))
    scatter = float(np.mean(fitted.weights * fitted.residuals**2)) * cells / (cells - len(theta))
    new = slopes(rest.logs(law.variables))
    return scatter * (1.0 + np.einsum("pk,pq,qk->k", new, inverse_products(known), new))


def _mean_square(splits: list[Split], form: str) -> float:
    return float(np.mean([np.mean(split.errors[form] ** 2) for split in splits]))


def _growth(split: Split, weights: Mapping[str, float]) -> float:
    """Squared growth implied by a split's errors, in excess of the fits' variances and differences between forms."""
    share = np.array(list(weights.values()))
    errors = np.stack([split.errors[form] for form in weights])
    variances = np.stack([split.variances[form] for form in weights])
    mean = share @ errors
    expected = share @ (variances + (errors - mean) ** 2)
    far = float(np.sum(split.distances**2))
    return max(float(np.sum(mean**2 - expected)), 0.0) / far if far > 0 else 0.0
