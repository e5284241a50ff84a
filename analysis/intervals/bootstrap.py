"""Cluster bootstrap: every form is refitted to resampled cells, and the form is selected again each time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.fitting.fit import Fit, refit
from analysis.fitting.likelihood import cell_means
from analysis.intervals.profile import Interval
from analysis.laws import Array
from analysis.points.table import Points

Selection = Callable[[Mapping[str, Array]], NDArray[np.str_]]
"""(form to its objective in each replicate (K,)) -> the selected form of each replicate (K,)."""

_REDRAWS = 100
_FEW_SIZES = 30  # with more distinct sizes, a replicate always has at least three


@dataclass(frozen=True, slots=True, kw_only=True)
class Bootstrap:
    """Replicates of the fits of one or more forms to resampled cells.

    Attributes:
        draws: Maps each form to its refitted parameters (K, p), in the law's order.
        chosen: The form selected in each replicate, (K,).
        level: Coverage of the intervals.
        unfinished: Maps each form to the number of refits that stopped before their minimum; they are included in `draws`.
    """

    draws: dict[str, Array]
    chosen: NDArray[np.str_]
    level: float
    unfinished: dict[str, int]

    def interval(self, values: Array) -> Interval:
        """The central interval of `level` of a sample (K,)."""
        low, high = np.quantile(values, [(1 - self.level) / 2, (1 + self.level) / 2])
        return float(low), float(high)


def bootstrap(
    points: Points, fits: Mapping[str, Fit], select: Selection, *, replicates: int, level: float, seed: int
) -> Bootstrap:
    """Refit every form to cells drawn with replacement, each with all its seeds.

    If every run is a cell of its own, this is the pairs bootstrap (Davison & Hinkley 1997, algorithm 6.2). All forms
    see the same replicates.

    Args:
        points: The fitted points.
        fits: Maps each form to its fit; all must be usable.
        select: The selection rule.
        replicates: K.
        level: Coverage of the intervals.
        seed: Seed of the resampling; the same seed gives the same replicates.
    """
    counts = _resampled(points, max(len(each.theta) for each in fits.values()), replicates, seed)
    draws, values, unfinished = {}, {}, {}
    for form, fitted in fits.items():
        if fitted.objective in ("lsq", "linear"):  # runs of a cell are replaced by their mean, which is faster
            cells = cell_means(points, fitted.weights, fitted.objective == "linear")
            found = refit(fitted, cells.points, weights=counts * cells.weights)
        else:
            found = refit(fitted, points, weights=counts[:, points.groups] * fitted.weights)
        lost = ~np.all(np.isfinite(found.theta), axis=1)
        draws[form] = np.where(lost[:, None], fitted.theta, found.theta)
        values[form] = np.where(lost, np.inf, found.value)
        unfinished[form] = int(np.sum(lost | ~found.converged))
    return Bootstrap(draws=draws, chosen=select(values), level=level, unfinished=unfinished)


def _resampled(points: Points, parameters: int, replicates: int, seed: int) -> Array:
    """Number of times each cell is drawn in each replicate, (K, m).

    Cells are drawn in table order, so that without repeats the result equals the usual pairs bootstrap of the rows. A
    replicate with too few distinct cells, or sizes, to determine the largest form is drawn again.
    """
    groups = points.groups
    first = np.unique(groups, return_index=True)[1]
    m = len(first)
    order = np.argsort(first)
    rng = np.random.default_rng(seed)
    sizes = [np.unique(axis[first], return_inverse=True)[1] for axis in (points.N, points.D)]
    sizes = [size for size in sizes if size.max() < _FEW_SIZES]
    counts = np.zeros((replicates, m))
    poor = np.full(replicates, True)
    for _ in range(_REDRAWS):
        count = int(poor.sum())
        drawn = rng.integers(0, m, (count, m)) + m * np.arange(count)[:, None]
        counts[np.ix_(poor, order)] = np.bincount(drawn.ravel(), minlength=count * m).reshape(count, m)
        poor = np.sum(counts > 0, axis=1) < min(parameters + 1, m)
        for size in sizes:
            distinct = int(size.max()) + 1
            seen = (counts > 0) @ np.eye(distinct)[size] > 0
            poor |= seen.sum(axis=1) < min(3, distinct)
        if not poor.any():
            break
    return counts
