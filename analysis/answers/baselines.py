"""Comparison with baselines: their data laws, and the number of spectra from which the study's model is better."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from analysis.intervals.compare import Comparison, compare
from analysis.points.limit import Limit
from analysis.points.table import MIN_CELLS
from analysis.points.trials import error_sem, points_from_cells
from scaling.errors import UserError
from scaling.results import measure_of

LEVEL = 0.9
"""Coverage of the crossing's interval."""
DRAWS = 2000
SCATTER = 0.01
"""Standard deviation of ln error between seeds if no cell is repeated, as assumed by `Search.seed_noise`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossing:
    """The number of spectra at which the study's models and a baseline are equally good.

    Attributes:
        better: The side on which the study's models are better, "above" or "below".
        D: Best estimate: 0 if all numbers run are above it, infinite if none is.
        interval: Its interval, likewise.
        ratio: Error of the study's best model divided by the baseline's, at the largest number that both ran on.
        largest: That number.
        words: The result in one sentence.
    """

    better: Literal["above", "below"]
    D: float
    interval: tuple[float, float]
    ratio: float
    largest: int
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """A family of rows beside the study's own.

    Attributes:
        family: Its name in the table.
        cells: Its cells, ordered by D.
        law: Its error over D, or None with a `problem`.
        crossing: The crossing with the study's models; None if they have no number of spectra in common.
        problem: Why there is no law, or "".
    """

    family: str
    cells: pd.DataFrame
    law: Comparison | None
    crossing: Crossing | None
    problem: str


def baselines(
    every: pd.DataFrame, own: pd.DataFrame, *, limit: Limit | None = None, replicates: int = 1000, seed: int = 0
) -> list[Baseline]:
    """The families other than the one that the law over N and D is fitted to.

    Args:
        every: Cells of all families (`CellTable.cells`).
        own: Cells of the law's family.
        limit: The information limit of the test spectra, a lower bound on the floor of every law.
        replicates: Number of bootstrap refits per form.
        seed: Seed of random numbers.
    """
    found = []
    others = every[~every["family"].isin(own["family"])]
    for family, cells in others.groupby("family"):
        cells, law, problem = cells.sort_values(["num_spectra", "seed"], ignore_index=True), None, ""
        try:
            if cells["num_spectra"].nunique() < MIN_CELLS["D"]:
                raise UserError(f"{cells['num_spectra'].nunique()} numbers of spectra are too few for a law")
            # The number of its parameters grows with the data, so its error is a curve over D alone.
            points = points_from_cells(cells.assign(num_params=1), limit=limit)
            law = compare(points, replicates=replicates, seed=seed)
        except UserError as error:
            problem = str(error).removeprefix("table: ")
        crossing = crossing_with(str(family), own, cells, seed)
        found.append(Baseline(family=str(family), cells=cells, law=law, crossing=crossing, problem=problem))
    return found


def crossing_with(family: str, own: pd.DataFrame, cells: pd.DataFrame, seed: int) -> Crossing | None:
    """Where the measured error curves cross, interpolated linearly in log error over log D.

    At each D the study's model is the size with the lowest validation error. The ratio is assumed to be monotonic in D, falling
    or rising, whichever is closer to the measurements; since scatter would create spurious crossings, draws of it are smoothed
    by isotonic regression. Errors are drawn about the measurements with the scatter between seeds, for the baseline too, and
    with the standard errors from the finite test set. Both are scored on the same spectra, so the difference is known better
    than that, and the interval is conservative.
    """
    ours, theirs = _by_data(_best_sizes(own)), _by_data(cells)
    both = ours.index.intersection(theirs.index)
    if not len(both):
        return None
    apart = np.log(ours.loc[both, "error"] / theirs.loc[both, "error"]).to_numpy(float)
    variance = sum(side.loc[both, "sem"] ** 2 + _scatter(own) ** 2 / side.loc[both, "runs"] for side in (ours, theirs))
    spread, logs = np.sqrt(np.asarray(variance, float)), np.log(both.to_numpy(float))

    def smooth(ratios: NDArray[np.float64], rising: bool) -> NDArray[np.float64]:
        return np.asarray(isotonic_regression(ratios, weights=spread**-2, increasing=rising).x)

    def crossing(ratios: NDArray[np.float64]) -> float:
        smoothed = smooth(ratios, rising)
        return _last_crossing(-smoothed if rising else smoothed, logs)

    misfit = [float((((apart - smooth(apart, up)) / spread) ** 2).sum()) for up in (False, True)]
    rising = misfit[1] < misfit[0] - 1e-9
    rng = np.random.default_rng(seed)
    drawn = [crossing(each) for each in apart + rng.standard_normal((DRAWS, len(both))) * spread]
    low, high = (float(np.quantile(drawn, tail, method="nearest")) for tail in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    found = Crossing(
        better="below" if rising else "above",
        D=crossing(apart),
        interval=(low, high),
        ratio=float(np.exp(apart[-1])),
        largest=int(both[-1]),
        words="",
    )
    return replace(found, words=_words(family, found, int(both[0])))


def _best_sizes(own: pd.DataFrame) -> pd.DataFrame:
    """Cells of the size that is best on the validation split, for each number of spectra."""
    means = own.groupby(["num_spectra", "num_params"])[measure_of(own).val].mean().reset_index()
    chosen = means.loc[means.groupby("num_spectra")[measure_of(own).val].idxmin(), ["num_spectra", "num_params"]]
    return own.merge(chosen, on=["num_spectra", "num_params"])


def _by_data(cells: pd.DataFrame) -> pd.DataFrame:
    """Mean test error, its relative standard error from the finite test set, and the number of runs, by D."""
    error = cells[measure_of(cells).test].astype(float)
    relative = (error_sem(cells) / error).where(lambda sem: sem > 0, 0.0)
    groups = pd.DataFrame({"D": cells["num_spectra"], "error": error, "sem": relative}).groupby("D")
    return groups.mean().assign(runs=groups.size())


def _scatter(own: pd.DataFrame) -> float:
    """Standard deviation of ln error between seeds of a cell, pooled over repeated cells, best sizes if possible."""
    for cells in (_best_sizes(own), own):
        logs = np.log(cells[measure_of(own).test].astype(float)).groupby([cells["num_params"], cells["num_spectra"]])
        squares, freedom = float((logs.var(ddof=1) * (logs.size() - 1)).sum()), int((logs.size() - 1).sum())
        if freedom:
            return max(float(np.sqrt(squares / freedom)), 1e-6)
    return SCATTER


def _last_crossing(apart: NDArray[np.float64], logs: NDArray[np.float64]) -> float:
    """The D above which the interpolated `apart` stays below 0; infinite if its last value is not below 0."""
    above = np.flatnonzero(apart >= 0)
    if not len(above):
        return 0.0
    k = int(above[-1])
    if k == len(apart) - 1:
        return float("inf")
    return float(np.exp(logs[k] + (logs[k + 1] - logs[k]) * apart[k] / (apart[k] - apart[k + 1])))


def _words(family: str, found: Crossing, smallest: int) -> str:
    first, last, (low, high) = f"{smallest:,}", f"{found.largest:,}", found.interval
    ends = [
        f"below {first}" if end == 0 else f"above {last}" if end == np.inf else _rounded(end) for end in (low, high)
    ]
    where = {"above": "from about {} spectra on", "below": "up to about {} spectra"}[found.better]
    if (found.better, found.D) in (("above", 0.0), ("below", np.inf)):
        verdict = f"the study's best model beats {family} at every number of spectra from {first} to {last}"
    elif found.D in (0.0, np.inf):
        verdict = f"{family} is not beaten at any number of spectra from {first} to {last}"
    else:
        verdict = f"the study's best model beats {family} {where.format(_rounded(found.D))}"
    equal = "" if low == high else f"{100 * LEVEL:g} % interval {ends[0]} to {ends[1]}; "
    return f"{verdict} ({equal}its error at {last} is {found.ratio:.2f} times that of {family})"


def _rounded(value: float) -> str:
    """Format with two significant digits."""
    return f"{float(f'{value:.1e}'):,.0f}"
