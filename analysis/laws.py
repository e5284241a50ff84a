"""The functional forms: test error as a function of model size N (parameters) and data D (distinct spectra)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

_TINY = 1e-300  # keeps log and division finite where a term has vanished


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """One functional form, with what a solver needs of it.

    All forms share the names E (the floor), A and alpha (capacity), B and beta (data), so that rescaling N and D
    only rescales A and B: `value` at (A, N) equals `value` at (A / N0^alpha, N / N0).

    Attributes:
        name: key in `LAWS`.
        formula: the form in words of mathematics, for people.
        parameters: names, in the order of every parameter vector.
        lower: lower bound of each parameter.
        upper: upper bound of each parameter.
        value: (parameters (p,), N (n,), D (n,)) -> error (n,), in the unit of the fitted column.
        jacobian: the same arguments -> derivatives (n, p).
    """

    name: str
    formula: str
    parameters: tuple[str, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    value: Callable[[Array, Array, Array], Array]
    jacobian: Callable[[Array, Array, Array], Array]

    def vector(self, parameters: Mapping[str, float]) -> Array:
        """Named parameters as the vector (p,) that `value` and `jacobian` take."""
        return np.array([parameters[name] for name in self.parameters])

    def predict(self, parameters: Mapping[str, float], N: ArrayLike, D: ArrayLike) -> Array:
        """The error at (N, D), broadcast against each other, for named parameters."""
        n, d = np.broadcast_arrays(np.asarray(N, float), np.asarray(D, float))
        return self.value(self.vector(parameters), n, d)


def _chinchilla_value(theta: Array, N: Array, D: Array) -> Array:
    E, A, alpha, B, beta = theta
    return E + A * N**-alpha + B * D**-beta


def _chinchilla_jacobian(theta: Array, N: Array, D: Array) -> Array:
    _, A, alpha, B, beta = theta
    n_term, d_term = N**-alpha, D**-beta
    return np.stack([np.ones_like(N), n_term, -A * n_term * np.log(N), d_term, -B * d_term * np.log(D)], axis=-1)


def _gamma_value(theta: Array, N: Array, D: Array) -> Array:
    E, A, alpha, B, beta, gamma = theta
    return E + (A * N**-alpha + B * D**-beta) ** gamma


def _gamma_jacobian(theta: Array, N: Array, D: Array) -> Array:
    _, A, alpha, B, beta, gamma = theta
    total = np.maximum(A * N**-alpha + B * D**-beta, _TINY)
    power = total**gamma
    inner = _chinchilla_jacobian(theta[:5], N, D) * (gamma * power / total)[..., None]
    inner[..., 0] = 1.0
    return np.concatenate([inner, (power * np.log(total))[..., None]], axis=-1)


CHINCHILLA = Law(
    name="chinchilla",
    formula="L = E + A/N^alpha + B/D^beta",
    parameters=("E", "A", "alpha", "B", "beta"),
    lower=(0.0, 0.0, 1e-3, 0.0, 1e-3),
    upper=(np.inf, np.inf, 3.0, np.inf, 3.0),
    value=_chinchilla_value,
    jacobian=_chinchilla_jacobian,
)
"""Two additive power laws and a floor (Hoffmann et al. 2022, arXiv 2203.15556, eq. 2)."""

GAMMA = Law(
    name="gamma",
    formula="L = E + (A/N^alpha + B/D^beta)^gamma",
    parameters=("E", "A", "alpha", "B", "beta", "gamma"),
    lower=(0.0, 0.0, 1e-3, 0.0, 1e-3, 0.1),
    upper=(np.inf, np.inf, 3.0, np.inf, 3.0, 10.0),
    value=_gamma_value,
    jacobian=_gamma_jacobian,
)
"""Chinchilla with an exponent on the sum, so that N and D interact: gamma < 1 tends to "the worse of the two limits
decides", gamma > 1 to a product of the two (the grouping of Kaplan et al. 2020, arXiv 2001.08361, eq. 1.5, with a
floor); gamma = 1 is Chinchilla."""

LAWS: dict[str, Law] = {law.name: law for law in (CHINCHILLA, GAMMA)}
