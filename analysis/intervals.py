"""How sure: a residual bootstrap of the fit, giving parameter intervals and prediction intervals for new runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from analysis.fit import Fit, fit
from analysis.laws import LAWS, Array
from analysis.table import Points

FAR = 4.0
"""A forecast further outside the fitted range than this factor, in N or in D, is flagged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scatter:
    """The scatter of runs about a law, in the logarithm of the loss: of cells, and of runs within a cell.

    Attributes:
        cell: mean residual of each cell, (cells,), inflated for the degrees of freedom that the fit used.
        within: deviation of each run from its cell's mean, (n,), inflated likewise; zeros with one run a cell.
        groups: the cell's number of each point, (n,).
        dof: degrees of freedom left, cells − parameters, at least 1.
    """

    cell: Array
    within: Array
    groups: NDArray[np.intp]
    dof: int

    def draw(self, rng: np.random.Generator, groups: NDArray[np.intp], scale: float) -> Array:
        """One draw of the residuals of runs with these cell numbers, (len(groups),)."""
        cells = rng.choice(self.cell, size=int(groups.max()) + 1)
        return scale * (cells[groups] + rng.choice(self.within, size=len(groups)))

    def draw_scale(self, rng: np.random.Generator) -> float:
        """sqrt(dof/χ²): the scatter is itself known from `dof` residuals only (as in Student's t)."""
        return float(np.sqrt(self.dof / rng.chisquare(self.dof)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bootstrap:
    """Replicates of the fits of one or more forms to the same points.

    Attributes:
        points: what was fitted.
        fits: form to its fit.
        weights: form to its share of the mixture from which forecasts are drawn; they add up to 1.
        draws: form to the refitted parameters (K, p), in the law's order.
        noise: form to the residual of a new run in each replicate (K,), in log loss.
        best: the form whose curve gives the value of a forecast.
        level: coverage of the intervals.
        unfinished: refits that stopped before their minimum; they are among `draws`.
    """

    points: Points
    fits: Mapping[str, Fit]
    weights: Mapping[str, float]
    draws: Mapping[str, Array]
    noise: Mapping[str, Array]
    best: str
    level: float
    unfinished: int

    def interval(self, values: Array) -> tuple[float, float]:
        """The central interval of `level` of a sample (K,)."""
        low, high = np.quantile(values, [(1 - self.level) / 2, (1 + self.level) / 2])
        return float(low), float(high)

    def parameter_intervals(self, form: str) -> dict[str, tuple[float, float]]:
        """Parameter name to (low, high), for one form."""
        names = LAWS[form].parameters
        return {name: self.interval(self.draws[form][:, place]) for place, name in enumerate(names)}

    def curves(self, N: ArrayLike, D: ArrayLike, *, new_run: bool) -> Array:
        """Replicates of the law at (N, D), the forms mixed in proportion to their weights.

        Args:
            N: (m,).
            D: (m,).
            new_run: whether to add the scatter of a single new run (a prediction) or not (the curve itself).

        Returns:
            (about K, m), in the unit of the fitted loss.
        """
        n, d = np.broadcast_arrays(np.atleast_1d(np.asarray(N, float)), np.atleast_1d(np.asarray(D, float)))
        parts = []
        for form, weight in self.weights.items():
            take = round(weight * len(self.draws[form]))
            values = np.array([LAWS[form].value(theta, n, d) for theta in self.draws[form][:take]]).reshape(-1, len(n))
            parts.append(values * np.exp(self.noise[form][:take, None]) if new_run else values)
        return np.concatenate(parts)

    def forecast(self, N: ArrayLike, D: ArrayLike) -> pd.DataFrame:
        """Predict single new runs at (N, D).

        Returns:
            One row a point: N, D, value (the best form's curve), low, high (prediction interval at `level`: the law's
            uncertainty, the choice of form and the scatter of one run), flags (words, empty within the fitted range).
        """
        n, d = np.broadcast_arrays(np.atleast_1d(np.asarray(N, float)), np.atleast_1d(np.asarray(D, float)))
        sample = self.curves(n, d, new_run=True)
        bounds = [self.interval(column) for column in sample.T]
        return pd.DataFrame(
            {
                "N": n,
                "D": d,
                "value": self.fits[self.best].predict(n, d),
                "low": [low for low, _ in bounds],
                "high": [high for _, high in bounds],
                "flags": ["; ".join(outside(self.points, a, b)) for a, b in zip(n, d, strict=True)],
            }
        )


def outside(points: Points, N: float, D: float) -> list[str]:
    """Words for each axis on which (N, D) lies more than a factor `FAR` outside the fitted points."""
    words = []
    for name, value, seen in (("N", N, points.N), ("D", D, points.D)):
        factor = max(value / seen.max(), seen.min() / value)
        if factor > FAR * (1 + 1e-9):
            words.append(f"{name} is {factor:.3g}x outside the fitted range")
    return words


def scatter(points: Points, fitted: Fit) -> Scatter:
    """Split a fit's log residuals into cells and runs within cells, each inflated to be unbiased in variance.

    With m cells, p parameters and s runs a cell, cell means are multiplied by sqrt(m/(m−p)), deviations within by
    sqrt(s/(s−1)); of the cells' variance the share that the runs' own scatter explains (its variance/s) is taken off,
    as it is drawn separately.
    """
    _, groups = np.unique(np.stack([points.N, points.D]), axis=1, return_inverse=True)
    groups = groups.ravel()
    counts = np.bincount(groups)
    means = np.bincount(groups, weights=fitted.residuals) / counts
    within = fitted.residuals - means[groups]
    m, dof = len(counts), max(len(counts) - len(fitted.parameters), 1)
    cell = (means - means.mean()) * np.sqrt(m / dof)
    runs = len(points) / m
    if runs > 1:
        within = within * np.sqrt(runs / (runs - 1))
        own = np.mean(within**2) / runs
        total = np.mean(cell**2)
        cell = cell * np.sqrt(max(total - own, 0.0) / total) if total > 0 else cell
    return Scatter(cell=cell, within=within, groups=groups, dof=dof)


def bootstrap(
    points: Points,
    fits: Mapping[str, Fit],
    weights: Mapping[str, float],
    *,
    replicates: int = 1000,
    level: float = 0.9,
    seed: int = 0,
) -> Bootstrap:
    """Refit every form to its own curve with resampled residuals, clustered by cell.

    Each replicate draws a scale of the scatter (Student's t for few points), a residual for every cell and every run,
    refits from the optimum, and draws the residual of one new run (Davison & Hinkley 1997, ch. 6–7).

    Args:
        points: what was fitted.
        fits: form to its fit; all must be usable.
        weights: form to its share of the forecasts; the largest gives their value.
        replicates: refits a form.
        level: coverage of the intervals.
        seed: all randomness; the same seed gives the same intervals.
    """
    draws, noise, unfinished = {}, {}, 0
    for form, fitted in fits.items():
        rng = np.random.default_rng([seed, sum(form.encode())])
        spread = scatter(points, fitted)
        curve = fitted.predict(points.N, points.D)
        thetas, extra = [], []
        for _ in range(replicates):
            scale = spread.draw_scale(rng)
            loss = curve * np.exp(spread.draw(rng, spread.groups, scale))
            new = spread.draw(rng, np.zeros(1, int), scale)[0]
            refit = fit(LAWS[form], points.N, points.D, loss, objective=fitted.objective, start=fitted.parameters)
            unfinished += refit.status == "failed"
            thetas.append(LAWS[form].vector(refit.parameters))
            extra.append(new)
        draws[form], noise[form] = np.array(thetas), np.array(extra)
    return Bootstrap(
        points=points,
        fits=fits,
        weights=weights,
        draws=draws,
        noise=noise,
        best=max(weights, key=lambda form: weights[form]),
        level=level,
        unfinished=unfinished,
    )
