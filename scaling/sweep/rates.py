"""Learning rates: the due trials of a study, as a pure function of its declaration and its rows.

A cell of the study's first seed is searched: one trial at the predicted rate, two beside it, then trials that bracket or
refine the best. Further seeds train once, at the best rate of the first. An interrupted and resumed study therefore tries
the same rates as an uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from scipy.optimize import least_squares

from scaling.model.ladder import count_parameters
from scaling.results import Row
from scaling.study.declaration import Cell, Search, Study

Due = tuple[int, float]
"""A trial's number in its cell, and its learning rate."""

BRACKET = 3
"""Minimum number of trials of a cell before its best rate can be bracketed."""
PRIOR_SCATTER = 1.0, 0.25, 0.25
"""Prior scatter of the rate law about the declared rate, in natural logarithms: of its height and its two exponents."""
RATE_SCATTER = 0.3
"""Scatter of a cell's best rate about the law, in natural logarithms; outliers are down-weighted (soft L1)."""


class Rates:
    """The rows of a study by cell, and its due trials. Adding a row has constant cost."""

    def __init__(self, study: Study, rows: list[Row]) -> None:
        self.study, self.search = study, study.search
        self.cells = {cell.key: cell for cell in study.cells()}
        self.anchors = anchors(study)
        self.rows: dict[Cell, dict[int, Row]] = {cell: {} for cell in self.cells.values()}
        for row in rows:
            if row.cell in self.cells:
                self._keep(row)
        self._law: RateLaw | None = None

    def add(self, row: Row) -> list[Cell]:
        """Add the row of a finished trial. Returns the cells whose due trials may have changed."""
        cell = self.cells[row.cell]
        self._keep(row)
        if cell in self.anchors and all(not self.due(anchor) for anchor in self.anchors):
            return list(self.rows)
        return self._seeds(cell)

    def due(self, cell: Cell) -> list[Due]:
        """Trials of the cell's current round without a row; none if it is done, or waits for other cells."""
        first = self.first(cell)
        if cell != first:
            best = None if self.due(first) or not self.rows[first] else best_row(self.rows[first])
            return [(0, best.lr)] if best is not None and 0 not in self.rows[cell] else []
        if not self.rows[cell] and cell not in self.anchors and any(self.due(anchor) for anchor in self.anchors):
            return []
        return open_round(self.search, self.rows[cell], self._start(cell))

    def expected(self, cell: Cell) -> int:
        """Number of trials that the cell still needs, as far as known; 0 when it is done."""
        known = len(self.rows[cell])
        if cell != (first := self.first(cell)):
            return 1 - known if self.due(cell) or self.expected(first) else 0
        due = len(self.due(cell))
        return 0 if known and not due else max(due, min(BRACKET, self.search.trials) - known)

    def remaining(self) -> list[tuple[Cell, int]]:
        """The unfinished cells, each with the number of trials it is expected to need."""
        return [(cell, count) for cell in self.rows if (count := self.expected(cell))]

    def first(self, cell: Cell) -> Cell:
        """The cell whose search gives this one's rate: same size and spectra, first seed."""
        return self._seeds(cell)[0]

    def rounds(self, cell: Cell) -> int:
        """Number of rounds until the cell and those that depend on it are done, as far as known."""
        if cell != self.first(cell):
            return 1
        known = len(self.rows[cell])
        return (3 if known == 0 else 2 if known < BRACKET else 1) + (len(self._seeds(cell)) > 1)

    def rival(self, cell: Cell, number: int) -> Row | None:
        """The best trial of the cell's earlier rounds, against which a new one is pruned; None in the first round."""
        earlier = {k: row for k, row in self.rows[cell].items() if k < (1 if number < BRACKET else number)}
        return best_row(earlier)

    def _keep(self, row: Row) -> None:
        cell = self.cells[row.cell]
        numbers = {cell.trial(number): number for number in range(max(self.search.trials, 1))}
        if row.trial in numbers:
            self.rows[cell][numbers[row.trial]] = row

    def _seeds(self, cell: Cell) -> list[Cell]:
        found = (
            self.cells.get(Cell(width=cell.width, num_spectra=cell.num_spectra, seed=s).key) for s in self.study.seeds
        )
        return [other for other in found if other is not None]

    def _start(self, cell: Cell) -> float:
        if 0 in self.rows[cell]:
            return self.rows[cell][0].lr
        if cell in self.anchors:
            return self.search.centre(cell.width)
        if self._law is None:
            self._law = RateLaw.fit(self.study, {anchor: self.rows[anchor] for anchor in self.anchors})
        return self._law.predict(cell)


def anchors(study: Study) -> tuple[Cell, ...]:
    """The cells that the rate law is fitted to: first seed, at the corners of the grid's lower half."""
    widths, sizes = study.widths, study.data.num_spectra
    return tuple(
        Cell(width=width, num_spectra=size, seed=study.seeds[0])
        for width in sorted({widths[0], widths[len(widths) // 2]})
        for size in sorted({sizes[0], sizes[len(sizes) // 2]})
    )


def open_round(search: Search, rows: dict[int, Row], start: float) -> list[Due]:
    """Trials of a cell's current round without a row; empty when the cell is done."""
    if 0 not in rows:
        return [(0, start)]
    first = rows[0].lr
    beside = [(1, first / search.factor), (2, first * search.factor)]
    missing = [(number, lr) for number, lr in beside if number not in rows and number < search.trials]
    if missing:
        return missing
    lr = _next_rate(search, [rows[number] for number in sorted(rows)])
    number = next(number for number in range(len(rows) + 1) if number not in rows)
    return [(number, lr)] if lr is not None and number < search.trials else []


def _next_rate(search: Search, rows: list[Row]) -> float | None:
    """The rate that brackets or refines the best one; None if neither is worth a trial."""
    best = best_row(dict(enumerate(rows)))
    known = [row for row in rows if row.status != "failed"]
    if not known:
        return None
    if best is None:  # all diverged: try a far lower rate
        return min(row.lr for row in known) / search.factor**2
    below, above = _neighbours(rows, best)
    if below is None or above is None:
        extended = len({row.lr for row in known}) > BRACKET
        return None if extended else best.lr / search.factor if below is None else best.lr * search.factor
    lr, gain = _vertex(below, best, above)
    return lr if gain > search.seed_noise else None


def _neighbours(rows: Iterable[Row], best: Row) -> tuple[Row | None, Row | None]:
    """The trials at the next lower and next higher rates; failed ones say nothing about their rate and are skipped."""
    known = [row for row in rows if row.status != "failed"]
    below = max((row for row in known if row.lr < best.lr), key=lambda row: row.lr, default=None)
    above = min((row for row in known if row.lr > best.lr), key=lambda row: row.lr, default=None)
    return below, above


def _vertex(below: Row, best: Row, above: Row) -> tuple[float, float]:
    """Minimum of the parabola through three trials in log rate and log error, and its gain over the best one.

    A trial without an error diverged or was pruned: it counts as 1.25 times the best error.
    """
    x = np.log([below.lr, best.lr, above.lr])
    errors = [row.val_error if row.status == "done" else 1.25 * best.val_error for row in (below, best, above)]
    curvature, slope, _ = np.polyfit(x - x[1], np.log(errors), 2)
    if not curvature > 0:
        return best.lr, 0.0
    return float(best.lr * math.exp(-slope / (2 * curvature))), float(slope**2 / (4 * curvature))


def best_row(rows: dict[int, Row]) -> Row | None:
    """The trial with the smallest validation error, the first in a tie; None if no trial has one."""
    done = [rows[number] for number in sorted(rows) if rows[number].status == "done"]
    return min(done, key=lambda row: row.val_error, default=None)


def bracketed(rows: dict[int, Row]) -> bool:
    """Whether a lower and a higher rate than the best were tried and found worse."""
    best = best_row(rows)
    return best is not None and None not in _neighbours(rows.values(), best)


class RateLaw:
    """The best learning rate over N and D: the declared one times e^a N^b D^c, centred on the middle of the grid.

    Fitted robustly to cells with a bracketed best rate, with the declared rate as the prior, and as the result without such cells.
    """

    def __init__(self, study: Study, coefficients: np.ndarray) -> None:
        self.study, self.coefficients = study, coefficients

    @classmethod
    def fit(cls, study: Study, cells: dict[Cell, dict[int, Row]]) -> RateLaw:
        """Least squares in natural logarithms, with soft L1 loss on the cells and a normal prior on coefficients."""
        found = {cell: lr for cell, rows in cells.items() if (lr := _optimum(rows)) is not None}
        if not found:
            return cls(study, np.zeros(3))
        places = np.array([_place(study, cell) for cell in found])
        deviations = np.array([math.log(lr / study.search.centre(cell.width)) for cell, lr in found.items()])

        def residuals(coefficients: np.ndarray) -> np.ndarray:
            misfit = (places @ coefficients - deviations) / RATE_SCATTER
            # least_squares applies its loss to all residuals; applying soft L1 here keeps the prior normal.
            robust = np.sign(misfit) * np.sqrt(2 * (np.sqrt(1 + misfit**2) - 1))
            return np.concatenate([robust, coefficients / PRIOR_SCATTER])

        return cls(study, least_squares(residuals, np.zeros(3)).x)

    def predict(self, cell: Cell) -> float:
        """The expected best rate of a cell."""
        correction = float(np.dot(_place(self.study, cell), self.coefficients))
        return self.study.search.centre(cell.width) * math.exp(correction)


def _optimum(rows: dict[int, Row]) -> float | None:
    """The best rate of a cell; None if it is not bracketed."""
    best = best_row(rows)
    below, above = (None, None) if best is None else _neighbours(rows.values(), best)
    return None if best is None or below is None or above is None else _vertex(below, best, above)[0]


def _place(study: Study, cell: Cell) -> tuple[float, float, float]:
    params = [
        count_parameters(study.model(width)).reach_loss for width in (study.widths[0], study.widths[-1], cell.width)
    ]
    sizes = study.data.num_spectra
    return (
        1.0,
        math.log(params[2] / math.sqrt(params[0] * params[1])),
        math.log(cell.num_spectra / math.sqrt(sizes[0] * sizes[-1])),
    )
