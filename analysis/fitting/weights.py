"""Weights of runs: the inverse scatter between seeds, as a smooth function of N and D."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from analysis.laws import Array
from analysis.points.table import Points

SIGNIFICANT = 0.05
"""Significance level at which a slope of the variance is kept."""

_LIKELIHOOD_RATIO = 3.841  # the 95 % point of χ² with one degree of freedom
_FEWEST = 8  # minimum degrees of freedom of the variances to fit a slope
_LARGEST = np.log(100.0)  # maximum change of the log variance along an axis: a factor 10 in scatter
_REACH = np.log(4.0)  # beyond this distance outside the points the variance is constant


@dataclass(frozen=True, slots=True, kw_only=True)
class VarianceModel:
    """A variance that changes as powers of N and D: its logarithm is linear in log N and log D.

    Attributes:
        slopes: Exponents of the variance over N and D, (2,); zero if not significant.
        middle: (log N, log D) where the relative variance is 1, (2,).
        low: Minimum (log N, log D) of the points, (2,).
        high: Maximum (log N, log D) of the points, (2,).
    """

    slopes: Array
    middle: Array
    low: Array
    high: Array

    @property
    def constant(self) -> bool:
        """Whether the variance is the same everywhere."""
        return not np.any(self.slopes)

    def relative(self, N: ArrayLike, D: ArrayLike) -> Array:
        """The variance at (N, D), (m,), relative to that at the middle of the points."""
        logs = np.log(np.stack(np.broadcast_arrays(np.asarray(N, float), np.asarray(D, float))))
        logs = np.clip(logs, (self.low - _REACH)[:, None], (self.high + _REACH)[:, None])
        return np.exp(self.slopes @ (logs - self.middle[:, None]))

    def design(self, N: ArrayLike, D: ArrayLike) -> Array:
        """(1, log N, log D) relative to the middle, (m, 3), with zeros for axes of constant variance."""
        logs = np.log(np.stack(np.broadcast_arrays(np.asarray(N, float), np.asarray(D, float)))).T - self.middle
        return np.hstack([np.ones((len(logs), 1)), np.where(self.slopes != 0, logs, 0.0)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Weights of runs, with their explanation.

    Attributes:
        weights: (n,), mean 1: the inverse of each run's variance of log loss.
        words: Their origin, in one sentence.
        model: The variance model they are derived from.
    """

    weights: Array
    words: str
    model: VarianceModel


def run_weights(points: Points) -> Weights:
    """Inverse variances of log loss from the scatter between seeds, pooled over all cells; ones without repeats.

    A variance from two or three seeds is far too uncertain to weight a cell by, so one smooth model is fitted to
    all of them (`variance_model`).
    """
    groups = points.groups
    counts = np.bincount(groups).astype(float)
    logs = np.log(points.loss)
    deviations = logs - (np.bincount(groups, weights=logs) / counts)[groups]
    squares, dof = np.bincount(groups, weights=deviations**2), counts - 1
    first = np.unique(groups, return_index=True)[1]
    repeated = dof > 0
    if not repeated.any():
        model = _flat(points.N, points.D)
        return Weights(
            weights=np.ones(len(points)), words="No cell has repeats: every run weighs the same.", model=model
        )
    variances = squares[repeated] / dof[repeated]
    model = variance_model(points.N[first][repeated], points.D[first][repeated], variances, dof[repeated])
    scatter = 100 * float(np.sqrt(squares.sum() / dof.sum()))
    words = f"Seeds at the same N and D scatter by {scatter:.2g} % (pooled over {repeated.sum()} such places)"
    if model.constant:
        words = f"{words}, no more at one place than at another: every run weighs the same."
        return Weights(weights=np.ones(len(points)), words=words, model=model)
    weights = 1.0 / model.relative(points.N, points.D)
    over = " and ".join(f"{name}^{slope:.2g}" for name, slope in zip("ND", model.slopes, strict=True) if slope)
    words = f"{words}; their variance changes as {over}, and runs are weighted by its inverse."
    return Weights(weights=weights / weights.mean(), words=words, model=model)


def variance_model(N: Array, D: Array, variances: Array, dof: Array) -> VarianceModel:
    """Fit log variance = c + a log N + b log D by maximum likelihood; only significant slopes are kept.

    A variance estimate with f degrees of freedom follows a gamma distribution with shape f/2, so this is a gamma
    regression with a logarithmic link (McCullagh & Nelder 1989, ch. 8). Slopes are dropped, the least significant
    first, until the likelihood ratio of each is significant at `SIGNIFICANT`. No axis changes the variance by more than a
    factor of 100: the residuals of a form that fits some runs exactly would allow any slope.

    Args:
        N: Model sizes, (m,).
        D: Numbers of spectra, (m,).
        variances: Variance estimates, (m,), not negative.
        dof: Degrees of freedom of each, (m,).
    """
    flat = _flat(N, D)
    if dof.sum() < _FEWEST or (mean := float(variances @ dof / dof.sum())) < np.finfo(float).tiny:
        return flat
    variances = variances / mean  # slopes do not depend on the unit, but exp may overflow
    logs = np.log(np.stack([N, D])) - flat.middle[:, None]
    kept = [axis for axis in range(2) if np.ptp(logs[axis]) > 0]
    while kept:
        coefficients, full = _gamma_regression(logs[kept], variances, dof)
        without = {axis: _gamma_regression(logs[[k for k in kept if k != axis]], variances, dof)[1] for axis in kept}
        weakest = min(without, key=lambda axis: without[axis])
        if without[weakest] - full > _LIKELIHOOD_RATIO:
            slopes = np.zeros(2)
            steepest = _LARGEST / np.ptp(logs[kept], axis=1)
            slopes[kept] = np.clip(coefficients[1:], -steepest, steepest)
            return VarianceModel(slopes=slopes, middle=flat.middle, low=flat.low, high=flat.high)
        kept.remove(weakest)
    return flat


def _flat(N: Array, D: Array) -> VarianceModel:
    logs = np.log(np.stack([N, D]))
    return VarianceModel(slopes=np.zeros(2), middle=logs.mean(axis=1), low=logs.min(axis=1), high=logs.max(axis=1))


def _gamma_regression(logs: Array, variances: Array, dof: Array) -> tuple[Array, float]:
    """Coefficients (1 + v,) and −2 log likelihood, by Fisher scoring."""
    design = np.vstack([np.ones(len(variances)), logs]).T
    coefficients = np.zeros(design.shape[1])
    coefficients[0] = np.log(np.average(variances, weights=dof))
    root = np.sqrt(dof)
    for _ in range(50):
        change = variances * np.exp(-design @ coefficients) - 1.0
        step = np.linalg.lstsq(design * root[:, None], change * root, rcond=None)[0]
        step *= min(1.0, 1.0 / max(np.abs(design @ step).max(), 1e-12))  # limits each variance's change to a factor e
        coefficients = coefficients + step
        if np.abs(step).max() < 1e-8:
            break
    fitted = design @ coefficients
    return coefficients, float(np.sum(dof * (fitted + variances * np.exp(-fitted))))
