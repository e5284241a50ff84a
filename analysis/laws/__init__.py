"""The functional forms: test error as a function of model size N (parameters) and data D (distinct spectra)."""

from analysis.laws.additive import CHINCHILLA
from analysis.laws.law import Array, Law

LAWS: dict[str, Law] = {law.name: law for law in (CHINCHILLA,)}

__all__ = ["CHINCHILLA", "LAWS", "Array", "Law"]
