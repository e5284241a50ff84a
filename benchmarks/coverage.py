"""Do the intervals cover, and does the selection select? Simulated studies with known truth.

    python -m benchmarks.coverage [--simulations 400] [--out benchmarks/coverage.md] [--processes 2]

Each study is a grid of 6 model sizes and 6 data sizes with log-normal scatter of runs. A 90 % interval should hold the
truth in 90 % of studies: wanted are 86 to 95 % for parameters and the curve, at least 85 % where the scatter changes
with N, at least 85 % for forecasts 4 times outside in N and in D whichever form is true, and the right family in at
least 90 % of studies. Standard errors are those of a proportion.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.compare import compare
from analysis.forecast import forecast
from analysis.laws import LAWS, Array
from analysis.table import Points

LEVEL = 0.9
SIDE = 6
STELLAR = {"E": 0.09, "A": 33.0, "alpha": 0.75, "B": 18.0, "beta": 0.67}
LANGUAGE = {"E": 1.8, "A": 480.0, "alpha": 0.35, "B": 2100.0, "beta": 0.37}

TRUTHS: dict[str, dict[str, float]] = {
    "chinchilla": STELLAR,
    "tied": {"E": 0.09, "A": 22.0, "alpha": 0.7, "B": 20.0},
    "no_floor": {"A": 8.0, "alpha": 0.55, "B": 4.0, "beta": 0.4},
    "kaplan": {"E": 0.08, "A": 20.0, "alpha": 0.65, "B": 3.0, "beta": 0.45},
    "gamma": {"E": 0.06, "A": 3.5e3, "alpha": 1.3, "B": 3e3, "beta": 1.2, "gamma": 0.5},
    "broken": {"E": 0.05, "A": 33.0, "alpha": 0.75, "B": 1.5, "beta": 0.25, "beta2": 0.9, "K": 8e3},
    "plateau": {"E": 0.05, "A": 33.0, "alpha": 0.75, "B": 18.0, "beta": 0.6, "K": 2e4},
    "ridge": {"E": 0.08, "A": 33.0, "alpha": 0.75, "B": 18.0, "beta": 0.67, "R": 0.02, "rho": 0.5},
}
"""Each form with its additional parameters far from where a simpler form would do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One kind of study.

    Attributes:
        name: what it is.
        form: the true form.
        truth: its parameters.
        smallest: smallest (N, D).
        decades: of N and of D.
        seeds: runs a cell.
        scatter: standard deviation of log loss at the smallest and at the largest N.
        forms: those that are fitted; None for all.
    """

    name: str
    form: str
    truth: dict[str, float]
    smallest: tuple[float, float] = (1e3, 500.0)
    decades: float = 2.5
    seeds: int = 1
    scatter: tuple[float, float] = (0.02, 0.02)
    forms: tuple[str, ...] | None = ("chinchilla",)
    objective: str = "lsq"

    def axes(self) -> tuple[Array, Array]:
        """The sizes of the grid."""
        steps = np.logspace(0, self.decades, SIDE)
        return self.smallest[0] * steps, self.smallest[1] * steps

    def study(self, rng: np.random.Generator) -> Points:
        """One simulated study."""
        N, D = (np.repeat(axis.ravel(), self.seeds) for axis in np.meshgrid(*self.axes(), indexing="ij"))
        share = np.log(N / N.min()) / np.log(N.max() / N.min())
        scatter = self.scatter[0] * (self.scatter[1] / self.scatter[0]) ** share
        return Points(N=N, D=D, loss=LAWS[self.form].predict(self.truth, N, D) * np.exp(rng.normal(0, scatter)))


def parameters_covered(case: Case, seed: int) -> dict[str, bool]:
    """Which of a study's intervals hold the truth: parameters, and the curve at the largest cell."""
    found = compare(
        case.study(np.random.default_rng(seed)),
        case.forms,
        objective=case.objective,  # type: ignore[arg-type]
        replicates=1000 if case.objective in ("huber", "l1") else 1,
        level=LEVEL,
    )
    N, D = (axis[-1] for axis in case.axes())
    cast = forecast(found, N, D).iloc[0]
    covered = {}
    for name in ("E", "alpha", "beta"):
        low, high = found.intervals[case.form][name]
        covered[name] = low <= case.truth[name] <= high
    covered["curve"] = bool(cast["curve_low"] <= LAWS[case.form].predict(case.truth, N, D) <= cast["curve_high"])
    return covered


def forecasts_covered(case: Case, seed: int) -> dict[str, bool]:
    """Whether the curve and one new run 4 times outside in N and in D are covered; and the form that was selected."""
    rng = np.random.default_rng(seed)
    found = compare(case.study(rng), case.forms, replicates=1, level=LEVEL)
    N, D = (4 * axis[-1] for axis in case.axes())
    cast = forecast(found, N, D).iloc[0] if not ALL else None
    return {}
