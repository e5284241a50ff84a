"""The sum of squares near a fit's minimum, over cell means: the basis of profiles and predictions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from analysis.fitting.fit import Fit
from analysis.fitting.solve import Problem
from analysis.fitting.weights import VarianceModel, run_weights, variance_model
from analysis.laws import Array, Law
from analysis.points.table import Points

_LEAST_FREE = 0.05  # minimum share of a cell's variance that remains in its residual
_MODEL_ROUNDS = 3
_ROUNDING = 1e-9
_EXACT = 1e-16  # relative variance of points that lie exactly on the law


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """Means of the runs of each cell; runs of a cell share the form's misfit there.

    Attributes:
        points: One point per cell, (m,): the geometric mean of its losses, or the mean for the objective "linear".
        weights: Sum of its runs' weights, (m,).
        runs: Number of its runs, (m,).
        pure_error: Variance between runs of a cell at weight 1; NaN without repeats.
        dof_pure: Its degrees of freedom.
    """

    points: Points
    weights: Array
    runs: NDArray[np.intp]
    pure_error: float
    dof_pure: int


def cell_means(points: Points, weights: Array, linear: bool = False) -> Cells:
    """Average the runs of each cell. `weights` (n,) must be equal within a cell."""
    groups = points.groups
    first = np.unique(groups, return_index=True)[1]
    runs = np.bincount(groups)
    values = points.loss if linear else np.log(points.loss)
    means = np.bincount(groups, weights=values) / runs
    squares = float(np.sum(weights * (values - means[groups]) ** 2))
    dof = len(points) - len(first)
    return Cells(
        points=replace(points.take(first), loss=means if linear else np.exp(means)),
        weights=np.bincount(groups, weights=weights).astype(float),
        runs=runs,
        pure_error=squares / dof if dof else float("nan"),
        dof_pure=dof,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Likelihood:
    """The sum of squares near the minimum of a least-squares fit, over cell means.

    Attributes:
        fitted: The fit, with objective "lsq" or "linear".
        cells: The fitted cell means.
        minimum: The smallest sum of squares.
        dof: cells − parameters.
        variance: minimum/dof, the variance of a run with weight 1 where cells have no misfit of their own.
        seeds: The variance model behind the runs' weights.
        left: Variance of the residuals relative to those weights; constant unless the residuals clearly contradict it.
        excess: Mean of `left` over the residuals, which is already included in `variance`.
    """

    fitted: Fit
    cells: Cells
    minimum: float
    dof: int
    variance: float
    seeds: VarianceModel
    left: VarianceModel
    excess: float

    @property
    def law(self) -> Law:
        """The form."""
        return self.fitted.law

    def problem(self, offsets: Array, law: Law | None = None) -> Problem:
        """The least-squares problem over the cells, in the logarithms of the variables minus the offsets (v,)."""
        return Problem(
            law=law or self.law,
            logs=self.cells.points.logs(self.law.variables) - offsets[:, None],
            loss=self.cells.points.loss,
            weights=self.cells.weights,
            objective=self.fitted.objective,
            delta=self.fitted.delta,
        )

    def slopes(self, theta: Array, logs: Array) -> Array:
        """Derivatives (p, n) of the residuals, for parameters in the frame of the logarithms (v, n)."""
        jacobian = self.law.jacobian(theta, logs)
        return jacobian if self.fitted.objective == "linear" else jacobian / self.law.value(theta, logs)

    def inflation(self, directions: Array, slopes: Array, inverse: Array) -> tuple[Array, Array]:
        """Ratio by which a non-constant variance changes the variance of linear combinations of parameters.

        The sandwich estimate (White 1980) with the modelled variance in the middle, divided by the usual estimate.

        Args:
            directions: Linear combinations, (k, p).
            slopes: Derivatives at the cells times the square roots of their weights, (p, m).
            inverse: Inverse of slopes slopesᵀ, (p, p).

        Returns:
            The ratio of variances (k,), and the source of the estimate's variance: the mean of (1, log N, log D)
            over the cells, weighted by their contributions, (k, 3).
        """
        points = self.cells.points
        spread = (directions @ inverse @ slopes) ** 2
        changed = spread * self.left.relative(points.N, points.D) / self.excess
        usual, total = spread.sum(axis=1), changed.sum(axis=1)
        some = usual > 0
        ratio = np.divide(total, usual, out=np.ones_like(usual), where=some)
        shares = np.where(some[:, None], changed, 1.0) / np.where(some, total, len(points))[:, None]
        return ratio, shares @ self.left.design(points.N, points.D)

    def effective_dof(self, source: Array) -> Array:
        """Degrees of freedom (k,) of variances that originate from cells around `source` (k, 3).

        A modelled variance is less certain far from the middle: 2/dof is the relative variance of its estimate, from
        the information of the gamma regression (following Satterthwaite 1946).
        """
        points = self.cells.points
        design = self.left.design(points.N, points.D)
        inverse = np.linalg.pinv(design.T @ design, hermitian=True)
        dof = self.dof / len(design) / np.einsum("kp,pq,kq->k", source, inverse, source)
        return np.clip(dof, 1.0, self.dof)

    def run_variance(self, N: Array, D: Array) -> Array:
        """Variance of one new run about the law at (N, D), (m,): its own scatter plus its cell's misfit."""
        shape = self.seeds.relative(N, D) / self._scale() * self.left.relative(N, D) / self.excess
        if not self.cells.dof_pure:
            return self.variance * shape
        runs = len(self.cells.runs) / np.sum(1.0 / self.cells.runs)
        misfit = max(self.variance - self.cells.pure_error, 0.0) / runs
        return (misfit + self.cells.pure_error) * shape

    def _scale(self) -> float:
        """Relative variance of a run with weight 1."""
        points, cells = self.cells.points, self.cells
        return float(np.mean(self.seeds.relative(points.N, points.D) * cells.weights / cells.runs))


def likelihood(fitted: Fit, points: Points) -> Likelihood:
    """The sum of squares of a fit of these points near its minimum.

    A variance that changes over N or D is estimated from the residuals, whatever the runs' weights: without repeats
    there are none, and a cell's misfit need not scatter like its seeds.
    """
    linear = fitted.objective == "linear"
    cells = cell_means(points, fitted.weights, linear)
    predicted = fitted.law.value(fitted.theta, cells.points.logs(fitted.law.variables))
    residuals = cells.points.loss - predicted if linear else np.log(cells.points.loss / predicted)
    squares = cells.weights * residuals**2
    dof = max(len(squares) - len(fitted.theta), 1)
    seeds = variance_model(points.N, points.D, np.zeros(len(points)), np.zeros(len(points)))
    found = Likelihood(
        fitted=fitted,
        cells=cells,
        minimum=float(squares.sum()),
        dof=dof,
        variance=max(float(squares.sum()) / dof, _EXACT * (float(np.mean(cells.points.loss**2)) if linear else 1.0)),
        seeds=seeds if linear or np.ptp(fitted.weights) == 0 else run_weights(points).model,
        left=seeds,
        excess=1.0,
    )
    slopes, inverse = information(found)
    leverage = np.einsum("pk,pq,qk->k", slopes, inverse, slopes)

    def residual_variance(relative: Array) -> Array:
        """Variance (m,) of the cells' residuals for given variances of the cells: by (1 − H)² (H: the hat matrix)."""
        shared = inverse @ (slopes * relative) @ slopes.T @ inverse
        return relative * (1 - 2 * leverage) + np.einsum("pk,pq,qk->k", slopes, shared, slopes)

    left, relative = seeds, np.ones(len(squares))
    for _ in range(_MODEL_ROUNDS):  # a fit moves variance from cells with large scatter to others
        expected = np.maximum(residual_variance(relative), _LEAST_FREE * relative)
        left = variance_model(cells.points.N, cells.points.D, squares * relative / expected, np.ones(len(squares)))
        relative = left.relative(cells.points.N, cells.points.D)
    return replace(found, left=left, excess=float(np.sum(residual_variance(relative))) / dof)


def frame(likely: Likelihood) -> tuple[Array, Array]:
    """Offsets that centre the variables (v,), and the parameters in that frame (p,)."""
    offsets = likely.law.middle(likely.cells.points.logs(likely.law.variables))
    return offsets, likely.law.shifted(likely.fitted.theta, -offsets)


def information(likely: Likelihood) -> tuple[Array, Array]:
    """Weighted derivatives at the cells (p, m), and the inverse of their products (p, p), in the centred frame."""
    offsets, theta = frame(likely)
    problem = likely.problem(offsets)
    slopes = likely.slopes(theta, problem.logs) * np.sqrt(problem.weights)
    slopes[at_bound(likely.law, theta)] = 0.0
    return slopes, inverse_products(slopes)


def at_bound(law: Law, theta: Array) -> NDArray[np.bool_]:
    """Mask (p,) of parameters at a bound, up to rounding, which therefore cannot follow when another one moves."""
    low, high = np.array(law.lower), np.array(law.upper)
    near = [_ROUNDING * np.where(np.isfinite(bound), np.abs(bound), 0.0) for bound in (low, high)]
    return (theta <= low + near[0]) | (theta >= high - near[1])


def inverse_products(slopes: Array) -> Array:
    """(slopes slopesᵀ)⁻¹, computed after scaling; a parameter without effect gets zero variance."""
    size = np.linalg.norm(slopes, axis=1)
    size = np.where(size > 0, size, np.inf)
    scaled = slopes / size[:, None]
    return np.linalg.pinv(scaled @ scaled.T, hermitian=True) / size / size[:, None]
