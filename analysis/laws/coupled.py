"""Forms in which capacity and data interact: a power of a sum of powers."""

from __future__ import annotations

import numpy as np

from analysis.laws.additive import CHINCHILLA
from analysis.laws.law import Array, Law, columns, powers_at
from analysis.laws.starts import best_of_each_value, mesh, scaled_starts
from analysis.laws.terms import lower, meaning, sigmoid, softplus, upper

_SMALLEST = 1e-100  # lower clip of amplitudes and sums, which keeps logarithms and derivatives finite
_EXPONENTS = np.geomspace(0.06, 1.8, 8)
_SHARES = 1 / (1 + np.exp(np.array([-5.0, -2.5, -1.0, 0.0, 1.0, 2.5, 5.0])))
_GAMMAS = np.array([0.2, 0.4, 0.7, 1.0, 1.6, 3.0])
_STEEPEST = 10.0
_LARGEST_LOG = 100.0  # upper clip of log terms, far from any data, so that squares do not overflow


def _logarithm(values: Array) -> Array:
    return np.log(np.maximum(values, _SMALLEST))


def _kaplan_parts(theta: Array, logs: Array) -> tuple[Array, ...]:
    """u and v, the logarithms of the bracket's two summands; the bracket's logarithm; and u's share of the bracket."""
    _, A, alpha, B, beta = columns(theta)
    u = (_logarithm(A) - alpha * logs[0]) / beta
    v = _logarithm(B) / beta - logs[1]
    return u, v, v + softplus(u - v), sigmoid(u - v)


def _kaplan_value(theta: Array, logs: Array) -> Array:
    E, _, _, _, beta = columns(theta)
    return E + np.exp(beta * _kaplan_parts(theta, logs)[2])


def _kaplan_jacobian(theta: Array, logs: Array) -> Array:
    _, A, _, B, beta = columns(theta)
    u, v, bracket, share = _kaplan_parts(theta, logs)
    term = np.exp(beta * bracket)
    derivatives = np.empty((*theta.shape, logs.shape[1]))
    derivatives[..., 0, :] = 1.0
    # term·share/A, computed in logarithms, since the share may vanish with A
    derivatives[..., 1, :] = np.exp((beta - 1.0) * bracket + u - _logarithm(A))
    derivatives[..., 2, :] = -term * share * logs[0]
    derivatives[..., 3, :] = np.exp((beta - 1.0) * bracket + v - _logarithm(B))
    derivatives[..., 4, :] = term * (bracket - share * u - sigmoid(v - u) * _logarithm(B) / beta)
    return derivatives


def _kaplan_starts(logs: Array, loss: Array) -> Array:
    grid, index = mesh(_EXPONENTS, _EXPONENTS, _SHARES)
    alpha, beta, share = grid.T
    nodes = np.stack([np.zeros_like(share), share**beta, alpha, (1.0 - share) ** beta, beta], axis=1)
    cost, solved = scaled_starts(_kaplan_value(nodes, logs), loss)
    nodes[:, 0] = solved[:, 0]
    nodes[:, [1, 3]] *= solved[:, 1:]
    return best_of_each_value(nodes, cost, index)


def _gamma_sum(theta: Array, logs: Array) -> tuple[Array, ...]:
    """Both powers at unit amplitude, and the sum of both terms."""
    _, A, alpha, B, beta, _ = columns(theta)
    n_power, d_power = np.exp(-alpha * logs[0]), np.exp(-beta * logs[1])
    return n_power, d_power, np.maximum(A * n_power + B * d_power, _SMALLEST)


def _gamma_value(theta: Array, logs: Array) -> Array:
    E, *_, gamma = columns(theta)
    return E + np.exp(np.minimum(gamma * np.log(_gamma_sum(theta, logs)[2]), _LARGEST_LOG))


def _gamma_jacobian(theta: Array, logs: Array) -> Array:
    _, A, _, B, _, gamma = columns(theta)
    n_power, d_power, total = _gamma_sum(theta, logs)
    log_total = np.log(total)
    log_term = np.minimum(gamma * log_total, _LARGEST_LOG)
    outer = gamma * np.exp(log_term - log_total)
    derivatives = np.empty((*theta.shape, logs.shape[1]))
    derivatives[..., 0, :] = 1.0
    derivatives[..., 1, :] = outer * n_power
    derivatives[..., 2, :] = -A * derivatives[..., 1, :] * logs[0]
    derivatives[..., 3, :] = outer * d_power
    derivatives[..., 4, :] = -B * derivatives[..., 3, :] * logs[1]
    derivatives[..., 5, :] = np.exp(log_term) * log_total
    return derivatives


def _gamma_starts(logs: Array, loss: Array) -> Array:
    # the grid is over the apparent exponents alpha·gamma and beta·gamma, far from the other term, which the points show
    grid, index = mesh(_EXPONENTS, _EXPONENTS, _SHARES, _GAMMAS)
    alpha, beta, share, gamma = grid.T
    alpha, beta = np.minimum(alpha / gamma, _STEEPEST), np.minimum(beta / gamma, _STEEPEST)
    nodes = np.stack([np.zeros_like(share), share, alpha, 1.0 - share, beta, gamma], axis=1)
    cost, solved = scaled_starts(_gamma_value(nodes, logs), loss)
    nodes[:, 0] = solved[:, 0]
    nodes[:, [1, 3]] *= solved[:, 1:] ** (1.0 / gamma[:, None])
    return best_of_each_value(nodes, cost, index)


def _quadrature_value(theta: Array, logs: Array) -> Array:
    E, A, alpha, B, beta = columns(theta)
    return np.hypot(E, A * np.exp(-alpha * logs[0]) + B * np.exp(-beta * logs[1]))


def _quadrature_jacobian(theta: Array, logs: Array) -> Array:
    E, A, alpha, B, beta = columns(theta)
    n_power, d_power = np.exp(-alpha * logs[0]), np.exp(-beta * logs[1])
    reducible = A * n_power + B * d_power
    loss = np.maximum(np.hypot(E, reducible), _SMALLEST)
    share = reducible / loss
    derivatives = np.empty((*theta.shape, logs.shape[1]))
    derivatives[..., 0, :] = E / loss
    derivatives[..., 1, :] = share * n_power
    derivatives[..., 2, :] = -A * derivatives[..., 1, :] * logs[0]
    derivatives[..., 3, :] = share * d_power
    derivatives[..., 4, :] = -B * derivatives[..., 3, :] * logs[1]
    return derivatives


def _quadrature_starts(logs: Array, loss: Array) -> Array:
    # squares are linear in the squared floor and, for a given share of the two terms, in the squared amplitude
    grid, index = mesh(_EXPONENTS, _EXPONENTS, _SHARES)
    alpha, beta, share = grid.T
    nodes = np.stack([np.zeros_like(share), share, alpha, 1.0 - share, beta], axis=1)
    _, solved = scaled_starts(_quadrature_value(nodes, logs) ** 2, loss**2)
    nodes[:, 0] = np.sqrt(solved[:, 0])
    nodes[:, [1, 3]] *= np.sqrt(solved[:, 1:])
    cost = np.sum((_quadrature_value(nodes, logs) / loss - 1) ** 2, axis=1)
    return best_of_each_value(nodes, cost, index)


_KAPLAN = ("E", "A", "alpha", "B", "beta")
_GAMMA = (*_KAPLAN, "gamma")


def _kaplan_powers(theta: Array) -> tuple[Array, Array, Array, Array]:
    _, A, alpha, B, beta = theta.T
    with np.errstate(over="ignore"):
        return A ** (1 / beta), alpha / beta, B ** (1 / beta), np.ones(len(theta))


KAPLAN = Law(
    name="kaplan",
    formula="L = E + (A^(1/beta) N^(-alpha/beta) + B^(1/beta)/D)^beta",
    source="Kaplan et al. 2020, arXiv 2001.08361, eq. 1.5, with a floor",
    variables=("N", "D"),
    meaning=meaning(_KAPLAN),
    lower=lower(_KAPLAN),
    upper=upper(_KAPLAN),
    value=_kaplan_value,
    jacobian=_kaplan_jacobian,
    starts=_kaplan_starts,
    shifted=CHINCHILLA.shifted,
    powers=_kaplan_powers,
    together=True,
)
"""For infinite data E + A/N^alpha, for an infinite model E + B/D^beta. The paper's N_c is A^(1/alpha), its D_c is
B^(1/beta), its alpha_N and alpha_D are alpha and beta, and its E is 0."""

GAMMA = Law(
    name="gamma",
    formula="L = E + (A/N^alpha + B/D^beta)^gamma",
    source="nests Hoffmann et al. 2022, arXiv 2203.15556 (gamma = 1) and Kaplan et al. 2020, arXiv 2001.08361 (beta = 1)",
    variables=("N", "D"),
    meaning=meaning(_GAMMA),
    lower=lower(_GAMMA),
    upper=tuple(
        _STEEPEST if name in ("alpha", "beta") else most for name, most in zip(_GAMMA, upper(_GAMMA), strict=True)
    ),
    value=_gamma_value,
    jacobian=_gamma_jacobian,
    starts=_gamma_starts,
    shifted=CHINCHILLA.shifted,
    powers=powers_at(1, 2, 3, 4),
    together=True,
)
"""gamma sets how sharply the error turns from capacity-limited to data-limited. `kaplan` with exponents (alpha, beta)
is this form with (alpha/beta, 1, gamma = beta)."""

QUADRATURE = Law(
    name="quadrature",
    formula="L = (E^2 + (A/N^alpha + B/D^beta)^2)^(1/2)",
    source="Hoffmann et al. 2022, arXiv 2203.15556, eq. 2, with the floor added in quadrature",
    variables=("N", "D"),
    meaning=meaning(_KAPLAN),
    lower=lower(_KAPLAN),
    upper=upper(_KAPLAN),
    value=_quadrature_value,
    jacobian=_quadrature_jacobian,
    starts=_quadrature_starts,
    shifted=CHINCHILLA.shifted,
    powers=powers_at(1, 2, 3, 4),
    together=True,
)
"""Noise error and model error are independent, so that their squares add."""
