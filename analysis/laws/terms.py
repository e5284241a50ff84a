"""Building blocks of laws: the parameters, and the terms that are linear in an amplitude."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from analysis.laws.law import LARGEST_EXPONENT, SMALLEST_EXPONENT, Array

SHARPNESS = 4.0
"""Sharpness of the break of `broken` and `plateau`: the bend extends over about a factor 3 in D."""

_EXPONENT = (SMALLEST_EXPONENT, LARGEST_EXPONENT)
_AMPLITUDE = (0.0, np.inf)
_PLACE = (1e-4, 1e4)  # position of a break, relative to the geometric mean of the variable
_REPEATS = (1e-2, 1e4)

PARAMETERS: dict[str, tuple[str, tuple[float, float]]] = {
    "E": ("floor: the error that neither more data nor a larger model removes", _AMPLITUDE),
    "A": ("amplitude of the capacity term", _AMPLITUDE),
    "alpha": ("exponent of the capacity term", _EXPONENT),
    "B": ("amplitude of the data term", _AMPLITUDE),
    "beta": ("exponent of the data term", _EXPONENT),
    "beta2": ("exponent of the data term beyond the break", (0.0, LARGEST_EXPONENT)),
    "K": ("where the exponent changes, in units of the variable", _PLACE),
    "gamma": ("outer exponent of the sum of both terms", (0.1, 10.0)),
    "R": ("amplitude of the overfitting term", _AMPLITUDE),
    "rho": ("exponent of the overfitting term", _EXPONENT),
    "r_D": ("how often spectra may be repeated before it stops helping", _REPEATS),
    "r_N": ("how far a model may exceed the best size for its data before it stops helping", _REPEATS),
    "g": ("inverse of the value of x beyond which more x stops helping", (0.0, 1e4)),
    "E0": ("error of an untrained guess, the limit for small x", _AMPLITUDE),
    "a": ("how slowly the error leaves that of the untrained guess", (0.0, 5.0)),
    "c": ("how much larger the exponent is beyond the break", (-LARGEST_EXPONENT, LARGEST_EXPONENT)),
    "f": ("width of the break, in log x", (0.05, 3.0)),
}
"""All parameters of all forms: meaning, and bounds for variables divided by their geometric means."""

AMPLITUDES = tuple(name for name, (_, bounds) in PARAMETERS.items() if bounds is _AMPLITUDE)
"""Parameters in the unit of the loss; all others are of order one."""


def meaning(names: Iterable[str]) -> dict[str, str]:
    """The meaning of each parameter."""
    return {name: PARAMETERS[name][0] for name in names}


def lower(names: Iterable[str]) -> tuple[float, ...]:
    """The lower bounds."""
    return tuple(PARAMETERS[name][1][0] for name in names)


def upper(names: Iterable[str]) -> tuple[float, ...]:
    """The upper bounds."""
    return tuple(PARAMETERS[name][1][1] for name in names)


EXPONENTS = np.geomspace(0.02, 2.5, 18)
_FEW_EXPONENTS = np.geomspace(0.03, 2.0, 10)

Shape = tuple[Array, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One summand: an amplitude times exp(log), where log depends on the shape parameters and the variables.

    Attributes:
        amplitude: Name of the amplitude.
        shape: Names of the other parameters.
        log: (shape parameters (..., 1), logs (v, n)) -> logarithm of the term at amplitude 1, (..., n).
        slopes: The same arguments -> its derivatives with respect to each shape parameter, broadcastable to (..., n).
        moved: (shape parameters (...), offsets (v,)) -> logarithm of the factor on the amplitude, and the shape
            parameters, of the same curve over logs + offsets.
        grid: Centred logs -> starting values of each shape parameter.
    """

    amplitude: str
    shape: tuple[str, ...]
    log: Callable[[Shape, Array], Array]
    slopes: Callable[[Shape, Array], Shape]
    moved: Callable[[Shape, Array], tuple[Array, Shape]]
    grid: Callable[[Array], tuple[Array, ...]]


CONSTANT = Term(
    amplitude="E",
    shape=(),
    log=lambda shape, logs: np.zeros_like(logs[0]),
    slopes=lambda shape, logs: (),
    moved=lambda shape, offsets: (np.zeros(()), ()),
    grid=lambda logs: (),
)


def power(amplitude: str, exponent: str, axis: int) -> Term:
    """amplitude / v^exponent, for the variable with index `axis`."""
    return Term(
        amplitude=amplitude,
        shape=(exponent,),
        log=lambda shape, logs: -shape[0] * logs[axis],
        slopes=lambda shape, logs: (-logs[axis],),
        moved=lambda shape, offsets: (shape[0] * offsets[axis], shape),
        grid=lambda logs: (EXPONENTS,),
    )


def softplus(z: Array) -> Array:
    """log(1 + exp z), without overflow."""
    return np.maximum(z, 0.0) + np.log1p(np.exp(-np.abs(z)))


def sigmoid(z: Array) -> Array:
    """1 / (1 + exp −z), the derivative of `softplus`, without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * z))


def _inside(logs: Array) -> Array:
    """Candidate positions of a break: away from the ends of the data, relative to their geometric mean."""
    return np.exp(np.linspace(logs.min(), logs.max(), 10)[1:-1])


def _past_the_break(K: Array, logs: Array) -> Array:
    """log(D / K), times the sharpness."""
    return SHARPNESS * (logs[1] - np.log(K))


def _broken_log(shape: Shape, logs: Array) -> Array:
    beta, beta2, K = shape
    return -beta * logs[1] + (beta - beta2) / SHARPNESS * softplus(_past_the_break(K, logs))


def _broken_slopes(shape: Shape, logs: Array) -> Shape:
    beta, beta2, K = shape
    z = _past_the_break(K, logs)
    bend = softplus(z) / SHARPNESS
    return bend - logs[1], -bend, (beta2 - beta) * sigmoid(z) / K


def _with_zero(shape: Shape) -> Shape:
    return shape[0], np.zeros_like(shape[0]), shape[1]


BROKEN = Term(
    amplitude="B",
    shape=("beta", "beta2", "K"),
    log=_broken_log,
    slopes=_broken_slopes,
    moved=lambda shape, offsets: (shape[0] * offsets[1], (*shape[:2], shape[2] * np.exp(offsets[1]))),
    grid=lambda logs: (_FEW_EXPONENTS, np.array([0.0, 0.1, 0.3, 0.6, 1.0, 1.6, 2.5]), _inside(logs[1])),
)
"""B/D^beta up to D = K, with exponent beta2 beyond."""

PLATEAU = Term(
    amplitude="B",
    shape=("beta", "K"),
    log=lambda shape, logs: _broken_log(_with_zero(shape), logs),
    slopes=lambda shape, logs: _broken_slopes(_with_zero(shape), logs)[::2],
    moved=lambda shape, offsets: (shape[0] * offsets[1], (shape[0], shape[1] * np.exp(offsets[1]))),
    grid=lambda logs: (EXPONENTS, _inside(logs[1])),
)
"""`BROKEN` with beta2 = 0."""

OVERFITTING = Term(
    amplitude="R",
    shape=("rho",),
    log=lambda shape, logs: shape[0] * (logs[0] - logs[1]),
    slopes=lambda shape, logs: (logs[0] - logs[1],),
    moved=lambda shape, offsets: (shape[0] * (offsets[1] - offsets[0]), shape),
    grid=lambda logs: (_FEW_EXPONENTS,),
)
"""R·(N/D)^rho."""

SATURATING = Term(
    amplitude="B",
    shape=("beta", "g"),
    log=lambda shape, logs: shape[0] * np.log(np.exp(-logs[0]) + shape[1]),
    slopes=lambda shape, logs: (
        np.log(np.exp(-logs[0]) + shape[1]),
        shape[0] / (np.exp(-logs[0]) + shape[1]),
    ),
    moved=lambda shape, offsets: (shape[0] * offsets[0], (shape[0], shape[1] * np.exp(-offsets[0]))),
    grid=lambda logs: (EXPONENTS, np.append(0.0, _inside(logs[0]))),
)
"""B·(1/x + g)^beta."""


def _one_break_log(shape: Shape, logs: Array) -> Array:
    beta, c, K, f = shape
    return -beta * logs[0] - c * f * softplus((logs[0] - np.log(K)) / f)


def _one_break_slopes(shape: Shape, logs: Array) -> Shape:
    _, c, K, f = shape
    z = (logs[0] - np.log(K)) / f
    bend, past = softplus(z), sigmoid(z)
    return -logs[0], -f * bend, c * past / K, c * (z * past - bend)


ONE_BREAK = Term(
    amplitude="B",
    shape=("beta", "c", "K", "f"),
    log=_one_break_log,
    slopes=_one_break_slopes,
    moved=lambda shape, offsets: (
        shape[0] * offsets[0],
        (*shape[:2], shape[2] * np.exp(offsets[0]), shape[3]),
    ),
    grid=lambda logs: (
        _FEW_EXPONENTS,
        np.array([-1.5, -0.8, -0.4, -0.15, 0.15, 0.4, 0.8, 1.5]),
        _inside(logs[0]),
        np.array([0.08, 0.3, 1.0]),
    ),
)
"""B·x^−beta·(1 + (x/K)^(1/f))^(−c f)."""
