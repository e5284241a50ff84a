"""Batched solver for many small fits: a projected Levenberg–Marquardt method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from analysis.laws.law import TINY, Array, Law

Objective = Literal["lsq", "linear", "huber", "l1"]

L1_DELTA = 1e-9
"""Smoothing of "l1": residuals below this size (in log loss) count quadratically."""

_DAMPING_START, _DAMPING_MAX, _DAMPING_MIN = 1e-3, 1e12, 1e-14
_RIDGE = 1e-14
_TRUSTED = 0.1  # with more damping, a small step does not imply convergence


@dataclass(frozen=True, slots=True, kw_only=True)
class Solutions:
    """Minima of a batch of problems: theta (k, p), the objective's value (k,), converged (k,)."""

    theta: Array
    value: Array
    converged: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A batch of objectives of one law over points that share their variables.

    Attributes:
        law: The form.
        logs: Logarithms of the variables, (v, n).
        loss: The loss, (n,) or (k, n).
        weights: The weights, (n,) or (k, n).
        objective: Name of the objective.
        delta: Threshold between squares and absolute values for "huber", in log loss.
    """

    law: Law
    logs: Array
    loss: Array
    weights: Array
    objective: Objective
    delta: float

    def part(self, chosen: NDArray[np.intp]) -> Problem:
        """The problems with these indices in the batch."""
        loss, weights = (each if each.ndim == 1 else each[chosen] for each in (self.loss, self.weights))
        return Problem(
            law=self.law, logs=self.logs, loss=loss, weights=weights, objective=self.objective, delta=self.delta
        )

    def residuals(self, theta: Array) -> Array:
        """Law − loss, in logarithms except for "linear": (k, n)."""
        predicted = self.law.value(theta, self.logs)
        if self.objective == "linear":
            return predicted - self.loss
        return np.log(np.maximum(predicted, TINY)) - np.log(self.loss)

    def value(self, residuals: Array) -> Array:
        """The summed objective (k,): Σ w r² for "lsq" and "linear", Σ w H(r) for "huber", Σ w |r| for "l1"."""
        if self.objective in ("lsq", "linear"):
            return np.sum(self.weights * residuals**2, axis=-1)
        size = np.abs(residuals)
        # Huber's function: r²/2 up to delta, then delta (|r| − delta/2), for both signs in one expression
        inner = np.minimum(size, self.delta)
        huber = inner * (size - 0.5 * inner)
        scale = 1.0 / self.delta if self.objective == "l1" else 1.0
        return scale * np.sum(self.weights * huber, axis=-1)

    def normal_equations(self, theta: Array, residuals: Array) -> tuple[Array, Array, Array]:
        """Half the gradient (k, p), the Gauss–Newton matrix and the damping matrix (k, p, p), on a common scale.

        For "huber" the matrix includes only the points in the quadratic part (the true curvature); the damping matrix
        is that of iteratively reweighted least squares (Huber 1981), whose step never overshoots. Damping thus interpolates
        between Newton's step and that one.
        """
        jacobian = self.law.jacobian(theta, self.logs)
        if self.objective != "linear":
            predicted = self.law.value(theta, self.logs)
            jacobian = jacobian / np.maximum(predicted, TINY)[:, None, :]
        if self.objective in ("lsq", "linear"):
            weighted = jacobian * np.broadcast_to(self.weights, residuals.shape)[:, None, :]
            matrix = weighted @ jacobian.swapaxes(1, 2)
            gradient = (weighted @ residuals[..., None])[..., 0]
            damping = np.zeros_like(matrix)
        else:
            size = np.abs(residuals)
            slope = self.weights * np.clip(residuals, -self.delta, self.delta)
            gradient = (jacobian @ slope[..., None])[..., 0]
            curved = self.weights * (size <= self.delta)
            matrix = (jacobian * curved[:, None, :]) @ jacobian.swapaxes(1, 2)
            reweighted = self.weights * np.minimum(1.0, self.delta / np.maximum(size, TINY))
            damping = (jacobian * reweighted[:, None, :]) @ jacobian.swapaxes(1, 2)
        places = np.arange(matrix.shape[-1])
        diagonal = damping[:, places, places] if self.objective in ("huber", "l1") else matrix[:, places, places]
        damping[:, places, places] += np.maximum(diagonal, TINY)
        return gradient, matrix, damping


def minimise(
    problem: Problem,
    start: Array,
    *,
    fixed: NDArray[np.bool_] | None = None,
    tolerance: float = 1e-12,
    iterations: int = 200,
) -> Solutions:
    """Minimise each problem from its start, within the law's bounds.

    Args:
        problem: A batch of k problems, or one problem for k starts.
        start: Starting parameters, (k, p); clipped to the bounds.
        fixed: Mask of parameters that are held at their start, (p,) or (k, p).
        tolerance: A problem has converged when the predicted decrease of a full step is below this fraction of its
            objective.
        iterations: Maximum number of steps.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # non-finite steps are rejected
        return _minimise(problem, start, fixed, tolerance, iterations)


def _minimise(
    problem: Problem, start: Array, fixed: NDArray[np.bool_] | None, tolerance: float, iterations: int
) -> Solutions:
    law = problem.law
    lower, upper = np.array(law.lower), np.array(law.upper)
    theta = np.clip(np.asarray(start, float), lower, upper)
    held = np.broadcast_to(np.zeros(theta.shape, bool) if fixed is None else fixed, theta.shape)
    residuals = problem.residuals(theta)
    value = problem.value(residuals)
    damping = np.full(len(theta), _DAMPING_START)
    growth = np.full(len(theta), 2.0)
    converged = np.zeros(len(theta), bool)
    scale = 1.0 / problem.delta if problem.objective == "l1" else 1.0
    half = 1.0 if problem.objective in ("lsq", "linear") else 0.5  # the objective is this times r² where it is smooth
    active = np.flatnonzero(np.isfinite(value))
    part = problem.part(active)
    for _ in range(iterations):
        if not len(active):
            break
        here = theta[active]
        equations = part.normal_equations(here, residuals[active])
        step, promised = _step(here, held[active], *equations, damping[active], lower, upper)
        promised *= 2 * half * scale
        trial = np.clip(here + step, lower, upper)
        trial_residuals = part.residuals(trial)
        trial_value = part.value(trial_residuals)
        better = trial_value < value[active]
        gain = np.where(better, value[active] - trial_value, 0.0)
        small = (promised <= tolerance * value[active] + TINY) & (damping[active] <= _TRUSTED)
        stuck = ~better & (damping[active] >= _DAMPING_MAX)
        ratio = gain / np.maximum(promised, TINY)
        moved = active[better]
        theta[moved], residuals[moved], value[moved] = trial[better], trial_residuals[better], trial_value[better]
        shrink = np.maximum(0.1, 1.0 - (2.0 * np.minimum(ratio, 1.0) - 1.0) ** 3)
        damping[active] = np.where(better, damping[active] * shrink, damping[active] * growth[active])
        damping[active] = np.clip(damping[active], _DAMPING_MIN, 2 * _DAMPING_MAX)
        growth[active] = np.where(better, 2.0, growth[active] * 2.0)
        done = small | stuck
        converged[active[done]] = True
        active = active[~done]
        part = problem.part(active)
    return Solutions(theta=theta, value=value, converged=converged)


def _step(
    theta: Array,
    held: NDArray[np.bool_],
    gradient: Array,
    matrix: Array,
    damper: Array,
    damping: Array,
    lower: Array,
    upper: Array,
) -> tuple[Array, Array]:
    """The damped Newton step (k, p) in the free parameters, and half its predicted decrease (k,).

    A parameter at a bound that the gradient pushes against is not free (Bertsekas 1982).
    """
    outward = ((theta <= lower) & (gradient > 0)) | ((theta >= upper) & (gradient < 0)) | held
    free = (~outward).astype(float)
    both = free[:, :, None] * free[:, None, :]
    places = np.arange(theta.shape[1])
    system = (matrix + damping[:, None, None] * damper) * both
    size = np.sqrt(np.maximum(system[:, places, places], TINY))
    size = np.where(outward, 1.0, size)
    system = system / (size[:, :, None] * size[:, None, :])
    system[:, places, places] += np.where(outward, 1.0, _RIDGE)
    downhill = -gradient * free
    step = np.linalg.solve(system, (downhill / size)[..., None])[..., 0] / size
    return step, 0.5 * np.sum(step * downhill, axis=1)
