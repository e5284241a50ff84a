"""The law of repeated data: unique spectra D against samples seen S."""

from __future__ import annotations

import numpy as np

from analysis.laws.additive import CHINCHILLA
from analysis.laws.law import Array, Law, columns
from analysis.laws.starts import best_of_each_value, mesh, scaled_starts
from analysis.laws.terms import lower, meaning, upper

_SMALLEST = 1e-100
_FARTHEST = 50.0  # upper clip of log(N / U_N) and log(S / U): beyond it nothing changes
_EXPONENTS = np.geomspace(0.06, 1.8, 6)
_REPEATS = np.array([0.3, 3.0, 30.0])
_PARAMETERS = ("E", "A", "alpha", "B", "beta", "r_D", "r_N")


def _effective(excess: Array, r: Array) -> tuple[Array, Array, Array]:
    """log(1 + r (1 − exp(−z/r))), z = exp(excess) − 1, with its derivatives by `excess` and by r; excess ≥ 0."""
    z = np.expm1(excess)
    left = np.exp(-z / r)
    total = 1.0 - r * np.expm1(-z / r)
    return np.log(total), left * (z + 1.0) / total, (-np.expm1(-z / r) - z / r * left) / total


def _best_size(theta: Array, U: Array) -> Array:
    """log N_opt for unique data U (logarithms): alpha A / N^alpha = beta B / U^beta, the optimum of C = 6 N D."""
    _, A, alpha, B, beta, _, _ = columns(theta)
    ratio = np.log(np.maximum(alpha * A, _SMALLEST)) - np.log(np.maximum(beta * B, _SMALLEST))
    return (ratio + beta * U) / alpha


def _excesses(theta: Array, logs: Array) -> tuple[Array, Array, Array]:
    """log N_opt, log(N / U_N) and log(S / U)."""
    N, D, S = logs
    best = _best_size(theta, np.minimum(D, S))
    return best, np.clip(N - best, 0.0, _FARTHEST), np.clip(S - D, 0.0, _FARTHEST)


def _terms(theta: Array, logs: Array) -> tuple[Array, ...]:
    """N_eff^-alpha, D_eff^-beta, log N_eff, log D_eff."""
    _, _, alpha, _, beta, r_D, r_N = columns(theta)
    N, D, S = logs
    _, beyond, repeated = _excesses(theta, logs)
    n_eff = N - beyond + _effective(beyond, r_N)[0]
    d_eff = np.minimum(D, S) + _effective(repeated, r_D)[0]
    return np.exp(-alpha * n_eff), np.exp(-beta * d_eff), n_eff, d_eff


def _value(theta: Array, logs: Array) -> Array:
    E, A, _, B, *_ = columns(theta)
    n_power, d_power, _, _ = _terms(theta, logs)
    return E + A * n_power + B * d_power


def _jacobian(theta: Array, logs: Array) -> Array:
    _, A, alpha, B, beta, r_D, r_N = columns(theta)
    n_power, d_power, n_eff, d_eff = _terms(theta, logs)
    best, beyond, repeated = _excesses(theta, logs)
    U = np.minimum(logs[1], logs[2])
    _, d_excess, d_r_N = _effective(beyond, r_N)
    _, _, d_r_D = _effective(repeated, r_D)
    # log N_eff = U_N + effective(N − U_N), and U_N follows N_opt where the model is too large for its data
    follows = (1.0 - d_excess) * ((beyond > 0.0) & (beyond < _FARTHEST))
    by_n_eff, by_d_eff = -alpha * A * n_power, -beta * B * d_power
    derivatives = np.empty((*theta.shape, logs.shape[1]))
    derivatives[..., 0, :] = 1.0
    derivatives[..., 1, :] = n_power - n_power * follows
    derivatives[..., 2, :] = -A * n_power * n_eff + by_n_eff * follows * (1.0 / alpha - best) / alpha
    # by_n_eff·follows·(−1/(alpha B)); B may be 0, and then `follows` is 0 too
    derivatives[..., 3, :] = d_power + A * n_power * follows / np.maximum(B, _SMALLEST)
    derivatives[..., 4, :] = -B * d_power * d_eff + by_n_eff * follows * (U - 1.0 / beta) / alpha
    derivatives[..., 5, :] = by_d_eff * d_r_D
    derivatives[..., 6, :] = by_n_eff * d_r_N
    return derivatives


def _starts(logs: Array, loss: Array) -> Array:
    # the grid is over log N_opt at the middle of the data, which fixes A/B; both amplitudes then scale together
    N, D, S = logs
    middle = np.minimum(D, S).mean()
    sizes = np.linspace(N.min() - 1.0, N.max() + 1.0, 6)
    grid, index = mesh(_EXPONENTS, _EXPONENTS, sizes, _REPEATS, _REPEATS)
    alpha, beta, best, r_D, r_N = grid.T
    share = 1.0 / (1.0 + alpha / beta * np.exp(beta * middle - alpha * best))
    nodes = np.stack([np.zeros_like(share), share, alpha, 1.0 - share, beta, r_D, r_N], axis=1)
    cost, solved = scaled_starts(_value(nodes, logs), loss)
    nodes[:, 0] = solved[:, 0]
    nodes[:, [1, 3]] *= solved[:, 1:]
    return best_of_each_value(nodes, cost, index)


def _shifted(theta: Array, offsets: Array) -> Array:
    if offsets[1] != offsets[2]:
        raise ValueError("D and S are compared with each other, so they must be shifted by the same offset")
    return CHINCHILLA.shifted(theta, offsets)


DATA_CONSTRAINED = Law(
    name="data_constrained",
    formula=(
        "L = E + A/N_eff^alpha + B/D_eff^beta; D_eff = U (1 + r_D (1 - exp(-(S/U - 1)/r_D))), U = min(D, S); "
        "N_eff = U_N (1 + r_N (1 - exp(-(N/U_N - 1)/r_N))), U_N = min(N, N_opt), alpha A/N_opt^alpha = beta B/U^beta"
    ),
    source="Muennighoff et al. 2023, arXiv 2305.16264, sections 3 and A",
    variables=("N", "D", "S"),
    meaning=meaning(_PARAMETERS),
    lower=lower(_PARAMETERS),
    upper=upper(_PARAMETERS),
    value=_value,
    jacobian=_jacobian,
    starts=_starts,
    shifted=_shifted,
    note="Repetition is what seeing the same spectra again costs, against as many samples of new ones.",
)
"""Repeated spectra, and parameters beyond the optimal size for the unique spectra, have diminishing value. The paper's
total data D, unique data U_D, R*_D and R*_N are our S, U, r_D and r_N. D and S have the same unit, and `logs` must keep
their difference."""
