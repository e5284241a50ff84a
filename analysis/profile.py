"""Profile likelihood: how far a parameter, the curve or a new run may be from the fit before the sum of squares tells."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from analysis.fit import Fit
from analysis.laws import Array, Law
from analysis.laws.law import TINY
from analysis.solve import Problem, minimise
from analysis.table import Points
from analysis.weights import VarianceModel, run_weights, variance_model

Interval = tuple[float, float]

_TOLERANCE = 1e-9
_CLOSE = 2e-3  # an end of an interval is exact to this share of its distance in t
_GROWTH = 4.0  # a search for an end extends its reach by this at most
_EXPANSIONS, _ROUNDS = 14, 30
_NODES = np.linspace(-1.0, 1.0, 17)
_LEAST_FREE = 0.05  # share of a cell's variance that stays in its residual, at least
_MODEL_ROUNDS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """Means of the runs of each cell; what a form gets wrong in a cell, its runs share.

    Attributes:
        points: one point a cell, (m,): the geometric mean of its losses, or the mean for the objective "linear".
        weights: sum of its runs' weights, (m,).
        runs: how many runs it has, (m,).
        pure_error: variance between runs of a cell at weight 1; NaN without repeats.
        dof_pure: its degrees of freedom.
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
    """The sum of squares about the minimum of a least-squares fit, over the means of cells.

    Attributes:
        fitted: the fit, of objective "lsq" or "linear".
        cells: what was fitted.
        minimum: the smallest sum of squares.
        dof: cells − parameters.
        variance: minimum/dof, of a run with weight 1 where cells have no misfit of their own.
        seeds: the variance that the runs' weights stand for.
        left: variance of the residuals relative to those weights; constant unless they plainly show otherwise.
        excess: mean of `left` over the residuals, by which `variance` counts it already.
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
        """Derivatives (p, n) of what is squared, at parameters in the frame of the logarithms (v, n)."""
        jacobian = self.law.jacobian(theta, logs)
        return jacobian if self.fitted.objective == "linear" else jacobian / self.law.value(theta, logs)

    def inflation(self, directions: Array, slopes: Array, inverse: Array) -> tuple[Array, Array]:
        """By how much a variance that is not constant changes that of linear combinations of parameters.

        The sandwich estimate (White 1980) with the modelled variance in the middle, over the usual one.

        Args:
            directions: combinations, (k, p).
            slopes: derivatives at the cells times the roots of their weights, (p, m).
            inverse: of slopes slopesᵀ, (p, p).

        Returns:
            The ratio of variances (k,), and where the estimate's variance comes from: the mean of (1, log N, log D)
            over the cells by their shares in it, (k, 3).
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
        """Degrees of freedom of variances, (k,), that come from cells about `source` (k, 3).

        A modelled variance is less certain far from the middle: 2/dof is the relative variance of its estimate, from
        the information of the gamma regression (after Satterthwaite 1946).
        """
        points = self.cells.points
        design = self.left.design(points.N, points.D)
        inverse = np.linalg.pinv(design.T @ design, hermitian=True)
        dof = self.dof / len(design) / np.einsum("kp,pq,kq->k", source, inverse, source)
        return np.clip(dof, 1.0, self.dof)

    def run_variance(self, N: Array, D: Array) -> Array:
        """Variance of one new run about the law at (N, D), (m,): its own scatter and its cell's misfit."""
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
    """The sum of squares of a fit of these points about its minimum.

    A variance that changes over N or D is sought in the residuals, whatever weights the runs have: without repeats
    there are none, and a cell's misfit need not scatter as its seeds do.
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
        variance=float(squares.sum()) / dof,
        seeds=seeds if linear or np.ptp(fitted.weights) == 0 else run_weights(points).model,
        left=seeds,
        excess=1.0,
    )
    slopes, inverse = _information(found)
    free = (np.eye(len(squares)) - slopes.T @ inverse @ slopes) ** 2
    left, relative = seeds, np.ones(len(squares))
    for _ in range(_MODEL_ROUNDS):  # a fit moves variance from cells that scatter much to others
        expected = np.maximum(free @ relative, _LEAST_FREE * relative)
        left = variance_model(cells.points.N, cells.points.D, squares * relative / expected, np.ones(len(squares)))
        relative = left.relative(cells.points.N, cells.points.D)
    return replace(found, left=left, excess=float(np.sum(free @ relative)) / dof)


def _frame(likely: Likelihood) -> tuple[Array, Array]:
    """Offsets that centre the variables (v,), and the parameters there (p,)."""
    offsets = likely.law.middle(likely.cells.points.logs(likely.law.variables))
    return offsets, likely.law.shifted(likely.fitted.theta, -offsets)


def _information(likely: Likelihood) -> tuple[Array, Array]:
    """Weighted derivatives at the cells (p, m), and the inverse of their products (p, p), in the centred frame."""
    offsets, theta = _frame(likely)
    problem = likely.problem(offsets)
    slopes = likely.slopes(theta, problem.logs) * np.sqrt(problem.weights)
    slopes[_at_bound(likely.law, theta)] = 0.0
    return slopes, _inverse(slopes)


def _at_bound(law: Law, theta: Array) -> NDArray[np.bool_]:
    """Which parameters stand at a bound and so cannot follow when another one moves, (p,)."""
    return (theta <= np.array(law.lower)) | (theta >= np.array(law.upper))


def _inverse(slopes: Array) -> Array:
    """(slopes slopesᵀ)⁻¹, scaled first; a parameter without effect gets a variance of zero."""
    size = np.linalg.norm(slopes, axis=1)
    size = np.where(size > 0, size, np.inf)
    scaled = slopes / size[:, None]
    return np.linalg.pinv(scaled @ scaled.T, hermitian=True) / size / size[:, None]


# --- parameters ---------------------------------------------------------------------------------------------------


def parameter_intervals(likely: Likelihood, level: float) -> dict[str, Interval]:
    """Profile-likelihood intervals of all parameters: where the sum of squares rises by s²·F (Bates & Watts 1988, 6.1).

    An end that a bound or endless flatness keeps from being found is 0 (−inf where negative values are possible) or inf.

    Args:
        likely: the sum of squares.
        level: coverage.
    """
    ends = np.empty((len(likely.law.parameters), 2))
    for offsets, places in _frames(likely):
        ends[places] = _Search(likely, offsets, places).ends(level)
    return {name: (float(low), float(high)) for name, (low, high) in zip(likely.law.parameters, ends, strict=True)}


def profile_rise(likely: Likelihood, parameter: str, values: Array) -> Array:
    """Signed roots t of the rise of the sum of squares, (k,), with a parameter held at each of the values (k,).

    The parameter's interval is where |t| is below Student's quantile for `likely.dof` degrees of freedom.
    """
    place = likely.law.parameters.index(parameter)
    offsets = next(offsets for offsets, places in _frames(likely) if place in places)
    search = _Search(likely, offsets, [place])
    at = np.zeros(len(values), int)
    return np.sign(values - search.theta[place]) * search.rise(at, np.asarray(values, float))[0]


def _frames(likely: Likelihood) -> list[tuple[Array, list[int]]]:
    """Offsets (v,) in which parameters are profiled, with the places of those parameters.

    All variables are centred except those whose origin a parameter depends on, such as N for the amplitude A.
    """
    offsets, theta = _frame(likely)
    frames: dict[tuple[float, ...], list[int]] = {}
    moved = [likely.law.shifted(theta, step) for step in np.eye(len(offsets))]
    for place in range(len(theta)):
        depends = np.array([each[place] != theta[place] for each in moved])
        frames.setdefault(tuple(np.where(depends, 0.0, offsets)), []).append(place)
    return [(np.array(key), places) for key, places in frames.items()]


class _Search:
    """The search for both ends of several parameters' intervals at once, in one frame."""

    def __init__(self, likely: Likelihood, offsets: Array, places: list[int]) -> None:
        law = likely.law
        middle, centred = _frame(likely)
        self.theta = law.shifted(likely.fitted.theta, -offsets)
        with np.errstate(divide="ignore", invalid="ignore"):
            scale = np.where(centred != 0, self.theta / centred, 1.0)  # bounds hold for centred variables
        self.lower, self.upper = np.array(law.lower) * scale, np.array(law.upper)
        self.upper = np.where(np.isfinite(self.upper), self.upper * scale, np.inf)
        law = replace(law, lower=tuple(self.lower), upper=tuple(self.upper))
        self.likely, self.places = likely, np.array(places)
        self.problem = likely.problem(offsets, law)
        slopes = likely.slopes(self.theta, self.problem.logs) * np.sqrt(self.problem.weights)
        self.width = np.sqrt(likely.variance * np.diag(_inverse(slopes)))
        slopes[_at_bound(law, self.theta)] = 0.0
        self.inverse = _inverse(slopes)
        ratio, source = likely.inflation(np.eye(len(self.theta)), slopes, self.inverse)
        self.spread, self.dof = likely.variance * ratio, likely.effective_dof(source)
        self.log = np.any(offsets != middle) and np.all(self.theta[places] > 0)

    def rise(self, which: NDArray[np.intp], values: Array, start: Array | None = None) -> tuple[Array, Array]:
        """sqrt of the rise over its variance (k,), and the parameters (k, p), with places[which] at the values (k,)."""
        place = self.places[which]
        start = np.repeat(self.theta[None], len(place), axis=0) if start is None else start.copy()
        rows = np.arange(len(place))
        own = self.inverse[place, place]
        path = self.inverse[place] / np.where(own > 0, own, np.inf)[:, None]
        if not self.log:  # along the valley; amplitudes far from the origin are too curved for it
            start += path * (values - start[rows, place])[:, None]
        start[rows, place] = values
        fixed = np.zeros(start.shape, bool)
        fixed[rows, place] = True
        found = minimise(self.problem, start, fixed=fixed, tolerance=_TOLERANCE, iterations=100)
        rise = np.maximum(found.value - self.likely.minimum, 0.0)
        return np.sqrt(rise / np.maximum(self.spread[place], TINY)), found.theta

    def ends(self, level: float) -> Array:
        """Low and high of each parameter, (places, 2)."""
        count = len(self.places)
        which, side = np.tile(np.arange(count), 2), np.repeat([-1.0, 1.0], count)
        place = self.places[which]
        middle = self.theta[place]
        to, back = (np.log, np.exp) if self.log else (lambda value: value, lambda value: value)
        target = stats.t.ppf(0.5 + level / 2, self.dof[place])
        width = self.width[place] * target
        width = np.where(width > 0, width, np.maximum(0.1 * np.abs(middle), 1e-3))
        width = np.clip(width / middle, 0.05, 2.0) if self.log else width
        with np.errstate(divide="ignore"):
            stop = np.abs(to(np.where(side < 0, self.lower[place], self.upper[place])) - to(middle))
        # distances from the estimate: `inside` the interval, `outside` of it once found, and the next to try
        inside, t_inside = np.zeros(2 * count), np.zeros(2 * count)
        outside, t_outside = np.full(2 * count, np.inf), np.full(2 * count, np.inf)
        distance, open_end, active = np.minimum(width, stop), stop <= 0, stop > 0
        theta = np.repeat(self.theta[None], 2 * count, axis=0)
        for turn in range(_ROUNDS):
            now = np.flatnonzero(active)
            if not len(now):
                break
            t, theta[now] = self.rise(which[now], back(to(middle) + side * distance)[now], theta[now])
            below = t < target[now]
            inside[now[below]], t_inside[now[below]] = distance[now[below]], t[below]
            outside[now[~below]], t_outside[now[~below]] = distance[now[~below]], t[~below]
            unbracketed = ~np.isfinite(outside)
            open_end |= active & unbracketed & ((inside >= stop) | (turn >= _EXPANSIONS))
            done = np.zeros(2 * count, bool)
            done[now] = np.abs(t - target[now]) < _CLOSE * target[now]
            active &= ~(open_end | done)
            with np.errstate(divide="ignore", invalid="ignore"):
                reach = np.clip(1.05 * target / t_inside, 1.3, _GROWTH)
                share = (target - t_inside) / (t_outside - t_inside)
                between = inside + np.clip(share, 0.1, 0.9) * (outside - inside)
            following = np.where(unbracketed, np.minimum(inside * reach, stop), between)
            distance = np.where(active, following, distance)
        natural = np.where(side > 0, np.inf, np.where(self.lower[place] < 0, -np.inf, 0.0))
        found = np.where(open_end, natural, back(to(middle) + side * np.where(open_end, 0.0, distance)))
        return found.reshape(2, count).T


# --- predictions --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictive:
    """Distributions of the curve, or of one new run, at several places: log loss against Student's t.

    Attributes:
        logs: log loss at the nodes, rising, (places, nodes).
        t: signed root of the rise of the sum of squares there, rising, (places, nodes).
        dof: degrees of freedom of t, (places,).
    """

    logs: Array
    t: Array
    dof: Array

    def probability(self, place: int, logs: Array) -> Array:
        """Probability that the log loss lies below each value (k,)."""
        x, t = self.logs[place], self.t[place]
        inside = np.interp(logs, x, t)
        below = t[0] + (logs - x[0]) * (t[1] - t[0]) / max(x[1] - x[0], 1e-12)
        above = t[-1] + (logs - x[-1]) * (t[-1] - t[-2]) / max(x[-1] - x[-2], 1e-12)
        return stats.t.cdf(np.where(logs < x[0], below, np.where(logs > x[-1], above, inside)), self.dof[place])


def predict(likely: Likelihood, logs: Array, N: Array, D: Array) -> tuple[Predictive, Predictive]:
    """Predict the curve and one new run at several places.

    A pseudo-observation y is added at each place; with the weight of one run, the root of the rise of the sum of
    squares is the pivot of the new run's loss, and the curve that fits it best lies on the profile of the curve
    (Bates & Watts 1988, ch. 6; for new observations Bjørnstad 1990).

    Args:
        likely: the sum of squares.
        logs: logarithms of the law's variables, (v, places).
        N: model sizes, (places,): the scatter of a new run depends on them.
        D: numbers of spectra, (places,).

    Returns:
        The distributions of the curve and of a new run.
    """
    offsets, theta = _frame(likely)
    problem = likely.problem(offsets)
    here = logs - offsets[:, None]
    directions = likely.slopes(theta, here).T
    slopes, inverse = _information(likely)
    variance = likely.run_variance(N, D)
    ratio, source = likely.inflation(directions, slopes, inverse)
    spread = likely.variance * ratio
    leverage = np.maximum(np.einsum("kp,pq,kq->k", directions, inverse, directions), 1e-12)
    value = likely.law.value(theta, here)
    dof = likely.effective_dof(source)
    share = (spread * leverage / (spread * leverage + variance))[:, None]
    dof_new = likely.effective_dof(share * source + (1.0 - share) * likely.left.design(N, D))
    reach = 1.3 * stats.t.ppf(0.995, np.minimum(dof, dof_new))
    # the curve moves by half of its pseudo-observation where the weight is 1/leverage
    width = 2.0 * np.sqrt(spread * leverage) * reach
    _, rise, _, curves = _paths(likely, problem, theta, here, value, 1.0 / leverage, width)
    width = np.sqrt(variance + spread * leverage) * reach
    observed, _, total, _ = _paths(likely, problem, theta, here, value, spread / variance, width)
    root = np.sqrt(spread)[:, None]
    rising = np.maximum.accumulate
    curves = np.where(_NODES == 0, value[:, None], np.maximum(curves, TINY))
    return (
        Predictive(logs=rising(np.log(curves), axis=1), t=rising(_signed_root(rise) / root, axis=1), dof=dof),
        Predictive(logs=np.log(observed), t=rising(_signed_root(total) / root, axis=1), dof=dof_new),
    )


def _signed_root(rise: Array) -> Array:
    return np.sign(_NODES) * np.sqrt(np.maximum(rise, 0.0))


def _paths(
    likely: Likelihood, problem: Problem, theta: Array, here: Array, value: Array, weight: Array, width: Array
) -> tuple[Array, Array, Array, Array]:
    """Refit with a pseudo-observation at each node of each place.

    Returns:
        The pseudo-observations, the rise of the sum of squares without and with them, and the curve's value there,
        each (places, nodes).
    """
    places, nodes, m = here.shape[1], len(_NODES), problem.logs.shape[1]
    change = width[:, None] * _NODES
    linear = likely.fitted.objective == "linear"
    observed = np.maximum(value[:, None] + change, 1e-12) if linear else value[:, None] * np.exp(change)
    rows = np.arange(places * nodes)
    own = m + np.repeat(np.arange(places), nodes)
    loss = np.empty((len(rows), m + places))
    loss[:, :m], loss[:, m:] = problem.loss, value
    loss[rows, own] = observed.ravel()
    weights = np.zeros_like(loss)
    weights[:, :m] = problem.weights
    weights[rows, own] = np.repeat(weight, nodes)
    widened = replace(problem, logs=np.hstack([problem.logs, here]), loss=loss, weights=weights)
    start = np.repeat(theta[None], len(rows), axis=0)
    found = minimise(widened, start, tolerance=_TOLERANCE, iterations=60)
    curves = likely.law.value(found.theta, here)[rows, own - m]
    miss = curves - observed.ravel() if linear else np.log(np.maximum(curves, TINY) / observed.ravel())
    total = found.value - likely.minimum
    rise = total - np.repeat(weight, nodes) * miss**2
    shape = (places, nodes)
    return observed, rise.reshape(shape), total.reshape(shape), curves.reshape(shape)
