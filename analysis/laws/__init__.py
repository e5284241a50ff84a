"""The functional forms: test error as a function of model size N (parameters) and data D (distinct spectra)."""

from analysis.laws.additive import (
    BNSL,
    BROKEN_POWER,
    CHINCHILLA,
    M1,
    M2,
    M3,
    NO_FLOOR,
    PLATEAU_IN_DATA,
    RIDGE,
    TIED,
)
from analysis.laws.coupled import GAMMA, KAPLAN, QUADRATURE
from analysis.laws.implicit import M4
from analysis.laws.law import Array, Law
from analysis.laws.repeated import DATA_CONSTRAINED
from analysis.laws.terms import AMPLITUDES

_SURFACES = (CHINCHILLA, TIED, NO_FLOOR, KAPLAN, GAMMA, BROKEN_POWER, PLATEAU_IN_DATA, RIDGE, QUADRATURE)
_CURVES = (M1, M2, M3, M4, BNSL)

LAWS: dict[str, Law] = {law.name: law for law in (*_SURFACES, DATA_CONSTRAINED, *_CURVES)}

SELECTABLE = tuple(law.name for law in _SURFACES)
"""The forms over (N, D) that compete if the samples seen are unknown."""

SURFACES = (*SELECTABLE, DATA_CONSTRAINED.name)
"""All forms over (N, D)."""

CURVES = tuple(law.name for law in _CURVES)
"""The forms of one variable."""

__all__ = ["AMPLITUDES", "CHINCHILLA", "CURVES", "GAMMA", "LAWS", "SELECTABLE", "SURFACES", "Array", "Law"]
