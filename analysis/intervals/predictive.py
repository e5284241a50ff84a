"""Predictive distributions of one form at any point, for its curve and for one new run."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from analysis.fitting.likelihood import Likelihood, frame, information
from analysis.fitting.solve import Problem, minimise
from analysis.laws import Array
from analysis.laws.law import TINY

_TOLERANCE = 1e-9
_NODES = np.array([-1.0, -0.75, -0.55, -0.35, -0.15, 0.0, 0.15, 0.35, 0.55, 0.75, 1.0])
_MANY = 1000  # with more cells, a law is effectively linear over its parameters' errors
_AT_ONCE = 8  # places per batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictive:
    """Distributions of the curve, or of one new run, at several places: log loss as a function of Student's t.

    Attributes:
        logs: Log loss at the nodes, ascending, (places, nodes).
        t: Signed root of the increase in the sum of squares at the nodes, ascending, (places, nodes).
        dof: Degrees of freedom of t, (places,).
    """

    logs: Array
    t: Array
    dof: Array

    def probability(self, place: int, logs: Array) -> Array:
        """Probability that the log loss is below each value (k,)."""
        x, t = self.logs[place], self.t[place]
        inside = np.interp(logs, x, t)
        below = t[0] + (logs - x[0]) * (t[1] - t[0]) / max(x[1] - x[0], 1e-12)
        above = t[-1] + (logs - x[-1]) * (t[-1] - t[-2]) / max(x[-1] - x[-2], 1e-12)
        return stats.t.cdf(np.where(logs < x[0], below, np.where(logs > x[-1], above, inside)), self.dof[place])


def predict(likely: Likelihood, logs: Array, N: Array, D: Array) -> tuple[Predictive, Predictive]:
    """Predict the curve and one new run at several places.

    A pseudo-observation y is added at each place. With the weight of one run, the root of the increase in the sum of
    squares is the pivot of the new run's loss, and the best-fitting curve then lies on the profile of the curve
    (Bates & Watts 1988, ch. 6; for new observations Bjørnstad 1990). With many cells the law is linearised.

    Args:
        likely: The sum of squares.
        logs: Logarithms of the law's variables, (v, places).
        N: Model sizes, (places,): the scatter of a new run depends on them.
        D: Numbers of spectra, (places,).

    Returns:
        The distributions of the curve and of a new run.
    """
    offsets, theta = frame(likely)
    problem = likely.problem(offsets)
    here = logs - offsets[:, None]
    directions = likely.slopes(theta, here).T
    slopes, inverse = information(likely)
    variance = likely.run_variance(N, D)
    ratio, source = likely.inflation(directions, slopes, inverse)
    spread = likely.variance * ratio
    leverage = np.maximum(np.einsum("kp,pq,kq->k", directions, inverse, directions), 1e-12)
    value = likely.law.value(theta, here)
    dof = likely.effective_dof(source)
    share = (spread * leverage / (spread * leverage + variance))[:, None]
    dof_new = likely.effective_dof(share * source + (1.0 - share) * likely.left.design(N, D))
    reach = 1.3 * stats.t.ppf(0.995, np.minimum(dof, dof_new))
    if len(likely.cells.points) > _MANY:
        linear = likely.fitted.objective == "linear"
        return (
            _straight(value, np.sqrt(spread * leverage), dof, linear),
            _straight(value, np.sqrt(spread * leverage + variance), dof_new, linear),
        )
    # at weight 1/leverage, the curve moves by half of its pseudo-observation
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


def _straight(value: Array, deviation: Array, dof: Array, linear: bool) -> Predictive:
    """Distributions around values (places,) with these standard deviations, in log loss, or in the loss if `linear`."""
    reach = 1.3 * stats.t.ppf(0.995, dof)[:, None] * _NODES
    change = deviation[:, None] * reach
    logs = np.log(np.maximum(value[:, None] + change, TINY)) if linear else np.log(value)[:, None] + change
    return Predictive(logs=np.maximum.accumulate(logs, axis=1), t=reach, dof=dof)


def _signed_root(rise: Array) -> Array:
    return np.sign(_NODES) * np.sqrt(np.maximum(rise, 0.0))


def _paths(
    likely: Likelihood, problem: Problem, theta: Array, here: Array, value: Array, weight: Array, width: Array
) -> tuple[Array, Array, Array, Array]:
    """Refit with a pseudo-observation at each node of each place.

    Returns:
        The pseudo-observations, the increase in the sum of squares without and with them, and the curve's value there,
        each (places, nodes).
    """
    parts = []
    for first in range(0, here.shape[1], _AT_ONCE):
        some = slice(first, first + _AT_ONCE)
        parts.append(_some_paths(likely, problem, theta, here[:, some], value[some], weight[some], width[some]))
    observed, rise, total, curves = (np.concatenate(each) for each in zip(*parts, strict=True))
    return observed, rise, total, curves


def _some_paths(
    likely: Likelihood, problem: Problem, theta: Array, here: Array, value: Array, weight: Array, width: Array
) -> tuple[Array, Array, Array, Array]:
    """`_paths` for a few places: every problem has the points of all places, with weight zero except its own."""
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
