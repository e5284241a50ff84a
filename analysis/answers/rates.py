"""The learning-rate law: the best learning rate of each cell, and its dependence on N and D."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from analysis.answers.parabola import bracketed_optimum
from analysis.intervals.profile import Interval
from analysis.laws import Array
from analysis.points.trials import CELL
from scaling.results import measure_of

_LEVEL = 0.9  # coverage of the intervals
_FEWEST = 3  # minimum number of learning rates for a parabola


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLaw:
    """log lr* = c + Σ exponent · log(N or D).

    Attributes:
        optima: One row per cell with at least three finished learning rates: N, D, lr_opt (of the parabola; NaN if rejected),
            bracketed, reason (of the rejection).
        exponents: Maps "N" and "D", if they vary, to the exponent; empty if too few optima are known.
        intervals: 90 % intervals of the exponents, from Student's t.
        words: The result in one or two sentences.
    """

    optima: pd.DataFrame
    exponents: dict[str, float]
    intervals: dict[str, Interval]
    words: str


def learning_rate_law(rows: pd.DataFrame) -> RateLaw | None:
    """Fit a parabola of log validation error in log learning rate in each cell, and a power law to the optima.

    An optimum counts only if it lies between learning rates that were tried. The power law is fitted by least squares.

    Args:
        rows: A results table of one family (`scaling.results.Row`).

    Returns:
        The law; None if no cell has three finished learning rates.
    """
    error = measure_of(rows).val
    done = rows[(rows["status"] == "done") & (rows[error].astype(float) > 0)]
    optima = [
        _optimum(trials, error) for _, trials in done.groupby(CELL, sort=True) if trials["lr"].nunique() >= _FEWEST
    ]
    if not optima:
        return None
    table = pd.DataFrame(optima)
    known = table[table["bracketed"]]
    sizes = {name: np.log(known[name].to_numpy(float)) for name in ("N", "D") if known[name].nunique() > 1}
    exponents, intervals = _power_law(sizes, np.log(known["lr_opt"].to_numpy(float)))
    return RateLaw(
        optima=table,
        exponents=exponents,
        intervals=intervals,
        words=_words(table, exponents, intervals),
    )


def _optimum(trials: pd.DataFrame, error: str) -> dict[str, object]:
    """One cell's best learning rate, by the column of its validation error."""
    first = trials.iloc[0]
    found = bracketed_optimum(np.log(trials["lr"].to_numpy(float)), np.log(trials[error].to_numpy(float)))
    return {
        "N": float(first["num_params"]),
        "D": float(first["num_spectra"]),
        "lr_opt": float(np.exp(found.x)),
        "bracketed": not found.reason,
        "reason": found.reason,
    }


def _power_law(sizes: dict[str, Array], target: Array) -> tuple[dict[str, float], dict[str, Interval]]:
    """Exponents over the sizes, with t-intervals; empty unless the optima determine them and their scatter."""
    design = np.column_stack([np.ones(len(target)), *(each - each.mean() for each in sizes.values())])
    dof = len(target) - design.shape[1]
    if not sizes or dof < 1 or np.linalg.matrix_rank(design) < design.shape[1]:
        return {}, {}
    solved = np.linalg.lstsq(design, target, rcond=None)[0]
    variance = float(np.sum((target - design @ solved) ** 2)) / dof
    error = np.sqrt(variance * np.diag(np.linalg.inv(design.T @ design)))
    reach = float(stats.t.ppf(0.5 + _LEVEL / 2, dof)) * error
    exponents = {name: float(value) for name, value in zip(sizes, solved[1:], strict=True)}
    ends = zip(sizes, solved[1:] - reach[1:], solved[1:] + reach[1:], strict=True)
    return exponents, {name: (float(low), float(high)) for name, low, high in ends}


def _words(table: pd.DataFrame, exponents: dict[str, float], intervals: dict[str, Interval]) -> str:
    known = int(table["bracketed"].sum())
    words = f"{known} of {len(table)} cells with three learning rates or more have their optimum between those tried."
    if not exponents:
        return f"{words} That is too few, or at too few sizes, for a law of the learning rate."
    parts = []
    for name, value in exponents.items():
        low, high = intervals[name]
        change = f"{name}^{value:.2f} [{low:.2f}, {high:.2f}]"
        parts.append(f"{change} (no change is possible)" if low <= 0 <= high else change)
    return f"{words} The best learning rate changes as {' and as '.join(parts)}, intervals at {100 * _LEVEL:g} %."
