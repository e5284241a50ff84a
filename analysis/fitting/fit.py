"""Fitting of a law to points: global, deterministic, with a typed outcome."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from analysis.fitting.solve import L1_DELTA, Objective, Problem, Solutions, minimise
from analysis.laws import AMPLITUDES, Array, Law
from analysis.points.table import Points
from scaling.errors import UserError

Status = Literal["converged", "bound_hit", "not_identified", "failed"]

DELTA = 1e-3
"""Huber's delta in log loss, as in Hoffmann et al. 2022 (arXiv 2203.15556, appendix D.2)."""

_MANY = 1000  # with more points, minima are first sought on a subset
_KEPT = 6  # number of rough minima that are refined to full precision
_SAME = 1e-6  # minima whose values differ relatively by less are considered equal
_AT_BOUND = 1e-6
_BATCH = 500_000  # losses per batch of refits: about 100 MB
_SINGULAR = 1e8
_TOLERANCE = {"lsq": 1e-14, "linear": 1e-14, "huber": 1e-12, "l1": 1e-9}
_STAGE_TOLERANCE = 1e-9  # for the continuation's stages; with less precision "l1" misses its minimum
_REFIT_TOLERANCE = 1e-7  # a refit need only be precise relative to the scatter of refits


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The outcome of one fit.

    Attributes:
        law: The fitted form, with its bounds.
        status: "converged"; "bound_hit" (a parameter is at its bound, named in `message`); "not_identified" (the
            points do not determine the parameters); "failed" (no minimum was found).
        objective: "lsq" (squares of log residuals), "linear" (squares of plain residuals), "huber" and "l1" (of log
            residuals).
        delta: Threshold between squares and absolute values for "huber", in log loss.
        value: The summed objective: Σ w r² for "lsq" and "linear", Σ w·(r²/2 or δ(|r| − δ/2)) for "huber", Σ w |r|
            for "l1".
        parameters: Maps names to values in full precision; NaN if there are fewer points than parameters.
        weights: w of each point (n,).
        residuals: log(loss) − log(law) of each point (n,), for any objective.
        message: Explanation of `status`.
    """

    law: Law
    status: Status
    objective: Objective
    delta: float
    value: float
    parameters: dict[str, float]
    weights: Array
    residuals: Array
    message: str

    @property
    def usable(self) -> bool:
        """Whether the law may be used for prediction: a minimum was found and is unique."""
        return self.status in ("converged", "bound_hit")

    @property
    def form(self) -> str:
        """The form's name."""
        return self.law.name

    @property
    def theta(self) -> Array:
        """The parameters as a vector (p,), in the law's order."""
        return self.law.vector(self.parameters)

    def predict(self, *variables: ArrayLike) -> Array:
        """The law's loss for given variables (N and D, or x), broadcast against each other."""
        return self.law.predict(self.parameters, *variables)


def fit(
    law: Law,
    points: Points,
    *,
    objective: Objective = "lsq",
    delta: float = DELTA,
    weights: ArrayLike | None = None,
) -> Fit:
    """Fit a law within its bounds, at the global optimum of the objective.

    Starts from a grid over the exponents, with the amplitudes solved exactly at each node, are minimised together by a
    batched Levenberg–Marquardt method; the distinct minima are then refined to full precision and the best is returned.
    "huber" and "l1" are reached by shrinking delta from a least-squares solution (continuation).

    Args:
        law: The form.
        points: The points to fit.
        objective: The objective to minimise, see `Fit`.
        delta: Threshold of "huber", in log loss.
        weights: w, (n,), positive; 1 if not given.

    Returns:
        The fit; points that cannot be fitted give a status, not an exception.

    Raises:
        UserError: The objective is unknown, delta or a weight is not positive, or the points lack a variable.
    """
    if objective not in get_args(Objective):
        raise UserError(f"objective {objective!r} is unknown; use one of {', '.join(get_args(Objective))}")
    if not 0 < delta < np.inf:
        raise UserError(f"delta {delta!r} must be a positive number, such as 1e-3")
    w = np.ones(len(points)) if weights is None else np.asarray(weights, float)
    if w.shape != points.loss.shape or not np.all(np.isfinite(w) & (w > 0)):
        raise UserError(f"weights: expected {len(points)} positive numbers, one a point")
    logs = points.logs(law.variables)
    if len(points) <= len(law.parameters) or len(np.unique(logs, axis=1).T) < len(law.parameters):
        return _undetermined(law, points, objective, delta, w)
    offsets = law.middle(logs)
    problem = _problem(law, logs - offsets[:, None], points.loss, w, objective, delta)
    best = _global_minimum(problem)
    theta = best.theta[0]
    status, message = _outcome(problem, best, offsets)
    predicted = law.value(theta, problem.logs)
    return Fit(
        law=law,
        status=status,
        objective=objective,
        delta=delta,
        value=float(best.value[0]),
        parameters={n: float(v) for n, v in zip(law.parameters, law.shifted(theta, offsets), strict=True)},
        weights=w,
        residuals=np.log(points.loss) - np.log(np.maximum(predicted, np.finfo(float).tiny)),
        message=message,
    )


def refit(fitted: Fit, points: Points, *, loss: Array | None = None, weights: Array | None = None) -> Solutions:
    """Fit many variants of the same points, each from the optimum of the original (a local search).

    Args:
        fitted: The fit of `points`.
        points: The original points.
        loss: Other losses, (k, n) or (n,); those of the points if not given.
        weights: Other weights, (k, n) or (n,); those of the fit if not given. Zero excludes a point.
    """
    law = fitted.law
    logs = points.logs(law.variables)
    offsets = law.middle(logs)
    loss = points.loss if loss is None else loss
    weights = fitted.weights if weights is None else weights
    count = max(len(each) if each.ndim == 2 else 1 for each in (loss, weights))
    problem = _problem(law, logs - offsets[:, None], loss, weights, fitted.objective, fitted.delta)
    start = law.shifted(fitted.theta, -offsets)
    size = max(1, _BATCH // len(points))
    parts = [
        _followed(problem.part(some), np.repeat(start[None], len(some), axis=0), _REFIT_TOLERANCE)
        for some in np.split(np.arange(count), range(size, count, size))
    ]
    return Solutions(
        theta=law.shifted(np.concatenate([part.theta for part in parts]), offsets),
        value=np.concatenate([part.value for part in parts]),
        converged=np.concatenate([part.converged for part in parts]),
    )


def _problem(law: Law, logs: Array, loss: Array, weights: Array, objective: Objective, delta: float) -> Problem:
    delta = L1_DELTA if objective == "l1" else delta
    return Problem(law=law, logs=logs, loss=loss, weights=weights, objective=objective, delta=delta)


def _global_minimum(problem: Problem) -> Solutions:
    """The best minimum reached from the law's starts, in full precision: a batch of one."""
    law = problem.law
    few = _thinned(problem)
    starts = np.clip(law.starts(few.logs, few.loss), law.lower, law.upper)
    rough = _distinct(minimise(_with(few, "lsq", few.delta), starts, tolerance=1e-4, iterations=40))
    if problem.objective == "linear":  # dominated by the largest losses, so it has other basins
        rough = np.concatenate([rough, _distinct(minimise(few, starts, tolerance=1e-4, iterations=40))])
    found = _followed(problem, rough, _TOLERANCE[problem.objective])
    best = [int(np.argmin(np.where(np.isfinite(found.value), found.value, np.inf)))]
    return Solutions(theta=found.theta[best], value=found.value[best], converged=found.converged[best])


def _thinned(problem: Problem) -> Problem:
    """Subsample very many points, evenly by size, as far as the minima remain visible."""
    n = problem.logs.shape[1]
    if n <= _MANY:
        return problem
    chosen = np.argsort(problem.logs.sum(axis=0), kind="stable")[np.linspace(0, n - 1, _MANY).astype(int)]
    return replace(problem, logs=problem.logs[:, chosen], loss=problem.loss[chosen], weights=problem.weights[chosen])


def _with(problem: Problem, objective: Objective, delta: float) -> Problem:
    return _problem(problem.law, problem.logs, problem.loss, problem.weights, objective, delta)


def _distinct(found: Solutions) -> Array:
    """The parameters of the lowest distinct minima: (k, p)."""
    order = np.argsort(np.where(np.isfinite(found.value), found.value, np.inf))
    kept: list[int] = []
    for place in order:
        value = found.value[place]
        if not kept or value > found.value[kept[-1]] * (1 + _SAME):
            kept.append(int(place))
    return found.theta[kept[:_KEPT]]


def _followed(problem: Problem, theta: Array, tolerance: float) -> Solutions:
    """Minimise from each start; a Huber delta shrinks from the size of the residuals to the objective's value."""
    if problem.objective in ("huber", "l1"):
        typical = float(np.median(np.abs(problem.residuals(theta))))
        steps = int(np.ceil(np.log(max(typical / problem.delta, 1.0)) / np.log(4.0)))
        for step in range(steps - 1, 0, -1):
            smoother = _with(problem, "huber", problem.delta * 4.0**step)
            theta = minimise(smoother, theta, tolerance=_STAGE_TOLERANCE, iterations=100).theta
    return minimise(problem, theta, tolerance=tolerance, iterations=2000)


def _undetermined(law: Law, points: Points, objective: Objective, delta: float, weights: Array) -> Fit:
    sizes = len(np.unique(points.groups))
    return Fit(
        law=law,
        status="not_identified",
        objective=objective,
        delta=delta,
        value=float("nan"),
        parameters=dict.fromkeys(law.parameters, float("nan")),
        weights=weights,
        residuals=np.full(len(points), np.nan),
        message=f"{len(points)} points at {sizes} sizes cannot determine {len(law.parameters)} parameters",
    )


def _outcome(problem: Problem, found: Solutions, offsets: Array) -> tuple[Status, str]:
    """The status of a fit, with an explanation."""
    law, theta = problem.law, found.theta[0]
    if not np.all(np.isfinite(theta)) or not np.isfinite(found.value[0]):
        return "failed", "the solver left the finite numbers"
    if not found.converged[0]:
        return "failed", "no minimum was reached; the form may not suit these points"
    smallest = problem.loss.min()
    size = np.where([name in AMPLITUDES for name in law.parameters], smallest, 1.0)
    natural = law.shifted(theta, offsets)  # bounds apply to centred variables, messages to the original ones
    words = []
    for side, gap in (("lower", theta - law.lower), ("upper", law.upper - theta)):
        words += [
            f"{name} is at the information limit {bound:.3g}"
            if name == "E" and side == "lower" and bound > 0
            else f"{name} is at its {side} bound {bound:.3g}"
            for name, bound, near in zip(law.parameters, natural, gap <= _AT_BOUND * size, strict=True)
            if near
        ]
    value = dict(zip(law.parameters, theta, strict=True))
    for amplitude, exponent, axis in (("A", "alpha", "N"), ("B", "beta", "D")):
        if value.get(amplitude, smallest) <= _AT_BOUND * smallest:
            words.append(f"so {exponent} is not determined: the points show no effect of {axis}")
    if words:
        return "bound_hit", "; ".join(words)
    seen = law.jacobian(theta, problem.logs)
    seen = seen if problem.objective == "linear" else seen / law.value(theta, problem.logs)
    seen = seen * np.sqrt(problem.weights)
    if np.linalg.cond(seen / np.maximum(np.linalg.norm(seen, axis=1, keepdims=True), 1e-300)) > _SINGULAR:
        return "not_identified", "several sets of parameters fit equally well: the points do not tell them apart"
    return "converged", "a unique minimum inside the bounds"
