"""M4: a curve that starts at the error of an untrained guess and turns into a power law."""

from __future__ import annotations

import numpy as np

from analysis.laws.additive import M2
from analysis.laws.law import Array, Law, columns
from analysis.laws.starts import best_of_each_value, mesh
from analysis.laws.terms import lower, meaning, sigmoid, softplus, upper

_SMALLEST = 1e-100
_ITERATIONS = 100
_PARAMETERS = ("E", "B", "beta", "E0", "a")


def _logit(c: Array, a: Array) -> Array:
    """The root t of h(t) = c − softplus(−t) + a softplus(t), by Newton's method.

    h is increasing, concave for a < 1 and convex for a > 1. Starting from c + min(t, 0) + a max(t, 0) = 0, the steps are
    therefore monotonic and never pass the root, and no safeguard is needed.
    """
    a = np.maximum(a, 1e-12)
    t = np.where(c >= 0, -c, -c / a)
    for _ in range(_ITERATIONS):
        step = (c - softplus(-t) + a * softplus(t)) / (sigmoid(-t) + a * sigmoid(t))
        t = t - step
        if np.all(np.abs(step) <= 1e-15 * (1.0 + np.abs(t))):
            break
    return t


def _solved(theta: Array, logs: Array) -> tuple[Array, ...]:
    """The range E0 − E, and the fractions of it above the floor and below the guess."""
    E, B, beta, E0, a = columns(theta)
    span = np.maximum(E0 - E, _SMALLEST)
    t = _logit((1.0 - a) * np.log(span) - np.log(np.maximum(B, _SMALLEST)) + beta * logs[0], a)
    return span, sigmoid(t), sigmoid(-t)


def _value(theta: Array, logs: Array) -> Array:
    span, above, _ = _solved(theta, logs)
    return theta[..., 0, None] + span * above


def _jacobian(theta: Array, logs: Array) -> Array:
    """By implicit differentiation of log(L − E) − a log(E0 − L) = log B − beta log x."""
    E, _, beta, E0, a = columns(theta)
    span, above, below = _solved(theta, logs)
    both = np.maximum(below + a * above, _SMALLEST)
    left = np.maximum(span * below, _SMALLEST)
    by_log_b = span * above * below / both  # dL / d log B
    by_span = a * above / both * (E0 > E)
    derivatives = np.empty((*theta.shape, logs.shape[1]))
    derivatives[..., 0, :] = 1.0 - by_span
    # by_log_b / B, with `above` written as B x^-beta (E0 − L)^a / span, since both may be 0
    derivatives[..., 1, :] = np.exp(a * np.log(left) - beta * logs[0]) * below / both
    derivatives[..., 2, :] = -by_log_b * logs[0]
    derivatives[..., 3, :] = by_span
    derivatives[..., 4, :] = by_log_b * np.log(left)
    return derivatives


def _starts(logs: Array, loss: Array) -> Array:
    # for given E, E0 and a, log(L − E) − a log(E0 − L) = log B − beta log x is a straight line
    low, high = loss.min(), loss.max()
    floors = low * (1.0 - np.append(np.geomspace(1e-3, 0.5, 9), 1.0))
    guesses = high + (high - low) * np.geomspace(1e-3, 10.0, 9) + 1e-6 * high
    grid, index = mesh(floors, guesses, np.array([0.1, 0.3, 0.6, 1.0, 1.7, 3.0, 5.0]))
    E, E0, a = columns(grid)
    x, height = logs[0], np.log(loss - E) - a * np.log(E0 - loss)
    weight = (loss / (loss - E) + a * loss / (E0 - loss)) ** -2.0  # makes errors relative to L
    weight /= weight.sum(axis=1, keepdims=True)
    middle, level = weight @ x, np.sum(weight * height, axis=1)
    along = x - middle[:, None]
    slope = np.sum(weight * height * along, axis=1) / np.sum(weight * along**2, axis=1)
    beta = np.clip(-slope, M4.lower[2], M4.upper[2])
    nodes = np.stack([grid[:, 0], np.exp(level + beta * middle), beta, grid[:, 1], grid[:, 2]], axis=1)
    cost = np.sum((_value(nodes, logs) / loss - 1.0) ** 2, axis=1)
    return best_of_each_value(nodes, cost, index)


M4 = Law(
    name="m4",
    formula="(L - E)/(E0 - L)^a = B x^-beta",
    source="Alabdulmohsin et al. 2022, arXiv 2209.06640, M4",
    variables=("x",),
    meaning=meaning(_PARAMETERS),
    lower=lower(_PARAMETERS),
    upper=upper(_PARAMETERS),
    value=_value,
    jacobian=_jacobian,
    starts=_starts,
    shifted=M2.shifted,  # the first three parameters shift alike
)
"""The error falls from E0 at small x to E; a = 0 is M2. Where E0 ≤ E the curve is the constant E.

The paper's eps_inf and eps_0 are our E and E0, its alpha our a, its beta our B, and its exponent c our −beta."""
