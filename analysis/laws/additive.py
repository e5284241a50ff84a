"""Forms that are sums of terms, each with its own amplitude: Chinchilla and relatives, and curves of one variable."""

from __future__ import annotations

from functools import partial

import numpy as np

from analysis.laws.law import Array, Law, Powers, powers_at
from analysis.laws.starts import separable_starts
from analysis.laws.terms import (
    BROKEN,
    CONSTANT,
    ONE_BREAK,
    OVERFITTING,
    PLATEAU,
    SATURATING,
    Shape,
    Term,
    lower,
    meaning,
    power,
    upper,
)

Place = tuple[int, list[int]]
"""Index of a term's amplitude, and indices of its shape parameters, in the parameter vector."""


def _columns(theta: Array, places: list[int]) -> Shape:
    """The parameters at these indices, each (..., 1)."""
    return tuple(theta[..., at, None] for at in places)


def _value(terms: tuple[Term, ...], places: list[Place], theta: Array, logs: Array) -> Array:
    total = np.zeros((*theta.shape[:-1], logs.shape[1]))
    for term, (amplitude, shape) in zip(terms, places, strict=True):
        total += theta[..., amplitude, None] * np.exp(term.log(_columns(theta, shape), logs))
    return total


def _jacobian(terms: tuple[Term, ...], places: list[Place], theta: Array, logs: Array) -> Array:
    derivatives = np.zeros((*theta.shape, logs.shape[1]))
    for term, (amplitude, shape) in zip(terms, places, strict=True):
        parameters = _columns(theta, shape)
        column = np.exp(term.log(parameters, logs))
        derivatives[..., amplitude, :] = column
        column = theta[..., amplitude, None] * column
        for at, slope in zip(shape, term.slopes(parameters, logs), strict=True):
            derivatives[..., at, :] += column * slope  # terms may share a parameter
    return derivatives


def _shifted(terms: tuple[Term, ...], places: list[Place], theta: Array, offsets: Array) -> Array:
    moved = np.array(theta, float)
    for term, (amplitude, shape) in zip(terms, places, strict=True):
        log_factor, parameters = term.moved(tuple(theta[..., at] for at in shape), offsets)
        moved[..., amplitude] *= np.exp(log_factor)
        for at, parameter in zip(shape, parameters, strict=True):
            moved[..., at] = parameter
    return moved


def additive(
    name: str,
    formula: str,
    source: str,
    *terms: Term,
    variables: tuple[str, ...] = ("N", "D"),
    powers: Powers | None = None,
    note: str = "",
) -> Law:
    """The law that is the sum of the terms; terms may share shape parameters."""
    names = list(dict.fromkeys(name for term in terms for name in (term.amplitude, *term.shape)))
    places = [(names.index(term.amplitude), [names.index(each) for each in term.shape]) for term in terms]
    return Law(
        name=name,
        formula=formula,
        source=source,
        variables=variables,
        meaning=meaning(names),
        lower=lower(names),
        upper=upper(names),
        value=partial(_value, terms, places),
        jacobian=partial(_jacobian, terms, places),
        starts=partial(separable_starts, terms, names),
        shifted=partial(_shifted, terms, places),
        powers=powers,
        note=note,
    )


_CAPACITY = power("A", "alpha", 0)
_DATA = power("B", "beta", 1)
_CURVE = power("B", "beta", 0)

CHINCHILLA = additive(
    "chinchilla",
    "L = E + A/N^alpha + B/D^beta",
    "Hoffmann et al. 2022, arXiv 2203.15556, eq. 2",
    CONSTANT,
    _CAPACITY,
    _DATA,
    powers=powers_at(1, 2, 3, 4),
)
"""Two independent power laws and a floor."""

TIED = additive(
    "tied",
    "L = E + A/N^alpha + B/D^alpha",
    "Hoffmann et al. 2022, arXiv 2203.15556, eq. 2, with one exponent",
    CONSTANT,
    _CAPACITY,
    power("B", "alpha", 1),
    powers=powers_at(1, 2, 3, 2),
)
"""One exponent for capacity and data: the best N then grows in proportion to the best D."""

NO_FLOOR = additive(
    "no_floor",
    "L = A/N^alpha + B/D^beta",
    "Hoffmann et al. 2022, arXiv 2203.15556, eq. 2, with E = 0",
    _CAPACITY,
    _DATA,
    powers=powers_at(0, 1, 2, 3),
    note="The selected form has no floor, so nothing is irreducible in it.",
)
"""The error decreases without limit."""

BROKEN_POWER = additive(
    "broken",
    "L = E + A/N^alpha + B D^-beta (1 + (D/K)^4)^((beta - beta2)/4)",
    "the smooth break of Caballero et al. 2023, arXiv 2210.14891, eq. 1, in D alone and of fixed width 1/4",
    CONSTANT,
    _CAPACITY,
    BROKEN,
)
"""The exponent of the data term changes from beta to beta2 at D = K."""

PLATEAU_IN_DATA = additive(
    "plateau",
    "L = E + A/N^alpha + B D^-beta (1 + (D/K)^4)^(beta/4)",
    "`broken` with beta2 = 0",
    CONSTANT,
    _CAPACITY,
    PLATEAU,
    note="The irreducible part holds what the plateau in D leaves.",
)
"""The error stops decreasing in D at K, as when a fixed budget of samples seen leaves further spectra unread."""

RIDGE = additive(
    "ridge",
    "L = E + A/N^alpha + B/D^beta + R (N/D)^rho",
    "Hoffmann et al. 2022, arXiv 2203.15556, eq. 2, with a term of our own",
    CONSTANT,
    _CAPACITY,
    _DATA,
    OVERFITTING,
    note="The data part holds the cost of a model that is too large for its data.",
)
"""A model that is too large for its data gets worse."""

M1 = additive("m1", "L = B x^-beta", "Alabdulmohsin et al. 2022, arXiv 2209.06640, M1", _CURVE, variables=("x",))
"""A power law. The paper writes the exponent as c = −beta, and beta for our B, in all of M1 to M4."""

M2 = additive(
    "m2",
    "L = E + B x^-beta",
    "Alabdulmohsin et al. 2022, arXiv 2209.06640, M2",
    CONSTANT,
    _CURVE,
    variables=("x",),
)
"""A power law above a floor."""

M3 = additive(
    "m3",
    "L = E + B (1/x + g)^beta",
    "Alabdulmohsin et al. 2022, arXiv 2209.06640, M3, with a floor",
    CONSTANT,
    SATURATING,
    variables=("x",),
)
"""A power law that saturates at x = 1/g. The paper's M3 has E = 0, and its exponent c is our beta, gamma our g."""

BNSL = additive(
    "bnsl",
    "L = E + B x^-beta (1 + (x/K)^(1/f))^(-c f)",
    "Caballero et al. 2023, arXiv 2210.14891, eq. 1, with one break",
    CONSTANT,
    ONE_BREAK,
    variables=("x",),
)
"""A smoothly broken power law: exponent beta before K, beta + c after. The paper's a, b, c0, c1, d1, f1 are our E, B,
beta, c, K, f; here beta > 0."""
