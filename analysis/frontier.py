"""What the law says about spending: the error budget of a cell, and what more data or a larger model would buy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.compare import Comparison
from analysis.laws import CHINCHILLA


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorBudget:
    """The terms of Chinchilla's form at one cell.

    Attributes:
        N: parameters of the model.
        D: distinct spectra.
        table: rows irreducible (E), capacity (A/N^alpha) and data (B/D^beta): value, low, high in the unit of the
            loss; share, share_low, share_high of their sum.
        note: what to know when reading it.
    """

    N: float
    D: float
    table: pd.DataFrame
    note: str


def error_budget(comparison: Comparison, N: float, D: float) -> ErrorBudget | None:
    """Split the error at (N, D) into floor, capacity and data, with bootstrap intervals; None if it cannot be split.

    Only the additive form can be split. Where the gamma form fits better, its terms are not separable; the split
    shown is still Chinchilla's and the note says so.
    """
    N, D, form = float(N), float(D), CHINCHILLA.name
    if form not in comparison.bootstrap.draws:
        return None
    point = _terms(CHINCHILLA.vector(comparison.fits[form].parameters)[None], N, D)[0]
    sample = _terms(comparison.bootstrap.draws[form], N, D)
    shares = sample / sample.sum(axis=1, keepdims=True)
    rows = []
    for place, name in enumerate(("irreducible", "capacity", "data")):
        low, high = comparison.bootstrap.interval(sample[:, place])
        share_low, share_high = comparison.bootstrap.interval(shares[:, place])
        rows.append(
            {
                "term": name,
                "value": point[place],
                "low": low,
                "high": high,
                "share": point[place] / point.sum(),
                "share_low": share_low,
                "share_high": share_high,
            }
        )
    note = ""
    if comparison.best != form:
        weight = comparison.weights[form]
        note = (
            f"The {comparison.best} form describes these cells better (Chinchilla's AICc weight is {weight:.2f}) and "
            "does not separate into terms; the split below is Chinchilla's and only a guide."
        )
    return ErrorBudget(N=N, D=D, table=pd.DataFrame(rows), note=note)


def _terms(theta: np.ndarray, N: float, D: float) -> np.ndarray:
    """E, A/N^alpha and B/D^beta (K, 3) of parameters (K, 5)."""
    E, A, alpha, B, beta = theta.T
    return np.stack([E, A * N**-alpha, B * D**-beta], axis=1)


def what_would_it_buy(comparison: Comparison, N: float, D: float, factor: float = 4.0) -> pd.DataFrame:
    """Forecasts of a run like (N, D), and with more data, a larger model, and both.

    Returns:
        One row a scenario: scenario, N, D, value, low, high (a prediction for one run), flags, and `gain`, `gain_low`,
        `gain_high`: the fall of the curve itself relative to (N, D), as a fraction (0.1 is a tenth less error).
    """
    scenarios = [
        ("as now", 1.0, 1.0),
        (f"{factor:g}× data", 1.0, factor),
        (f"{factor:g}× model", factor, 1.0),
        (f"{factor:g}× both", factor, factor),
    ]
    n = np.array([N * more for _, more, _ in scenarios])
    d = np.array([D * more for _, _, more in scenarios])
    table = comparison.bootstrap.forecast(n, d)
    table.insert(0, "scenario", [name for name, _, _ in scenarios])
    curves = comparison.bootstrap.curves(n, d, new_run=False)
    gains = 1 - curves / curves[:, :1]
    table["gain"] = 1 - table["value"] / table["value"].iloc[0]
    table[["gain_low", "gain_high"]] = [comparison.bootstrap.interval(column) for column in gains.T]
    return table
