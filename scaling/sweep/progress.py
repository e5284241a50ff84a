"""What a person sees while a study runs: trials and cells done, the best error so far, the time left."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from scaling.model.ladder import train_flops
from scaling.results import Row
from scaling.study.declaration import Cell, Study


class Progress:
    """Counts rows and writes a line for each. The time left is learnt from the trials already measured."""

    def __init__(
        self, study: Study, rows: list[Row], resources: dict[str, float], write: Callable[[str], None]
    ) -> None:
        self.study, self.write = study, write
        self.cells = {cell.key: cell for cell in study.cells()}
        self.rows = {row.trial: row for row in rows}
        self.total = len(self.cells) * study.search.trials
        self.resources, self.started = resources, time.monotonic()

    def add(self, row: Row) -> None:
        """Count a finished trial and say so."""
        self.rows[row.trial] = row
        result = row.measure.tell(row.test_error) if row.status == "done" else row.status.upper()
        self.write(f"{self.line()} | {row.trial} lr {row.lr:.2g}: {result} in {row.wall_seconds:.0f} s")

    def line(self) -> str:
        """Trials and cells done, best error, time left."""
        by_cell: dict[str, int] = {}
        for row in self.rows.values():
            by_cell[row.cell] = by_cell.get(row.cell, 0) + 1
        cells_done = sum(count >= self.study.search.trials for count in by_cell.values())
        best = min(
            (row for row in self.rows.values() if row.status == "done"), key=lambda row: row.val_error, default=None
        )
        parts = [f"trials {len(self.rows)}/{self.total}", f"cells {cells_done}/{len(self.cells)}"]
        if best is not None:
            parts.append(f"best val {best.measure.tell(best.val_error)}")
        left = self.seconds_left()
        if left is not None:
            parts.append(f"about {duration(left)} left")
        return " | ".join(parts)

    def seconds_left(self) -> float | None:
        """Remaining work over what the cluster does side by side; None before anything was measured."""
        measured = [row for row in self.rows.values() if row.wall_seconds == row.wall_seconds and row.steps]
        if not measured:
            return None
        return sum(
            self._wall_seconds(cell, measured) * self._share(cell)
            for cell in self.cells.values()
            for number in range(self.study.search.trials)
            if cell.trial(number) not in self.rows
        )

    def _share(self, cell: Cell) -> float:
        """The part of the cluster that a trial of the cell occupies."""
        placement = self.study.placement(cell)
        name, each = ("GPU", placement.gpus) if placement.gpus else ("CPU", placement.cpus)
        return min(1.0, each * placement.workers / self.resources.get(name, each))

    def _wall_seconds(self, cell: Cell, measured: list[Row]) -> float:
        """From the measured trials nearest in cost per step, scaled by the steps; of the same host if there are any."""
        config, recipe = self.study.model(cell.width), self.study.recipe
        steps = recipe.budget.steps(cell.num_spectra, recipe.batch_size)
        cost = math.log(train_flops(config, recipe.batch_size))

        def distance(row: Row) -> float:
            return abs(math.log(row.train_flops / row.steps) - cost)

        host = self.study.placement(cell).host
        candidates = [row for row in measured if row.host == host] or measured
        nearest = min(distance(row) for row in candidates)
        alike = [row.wall_seconds / row.steps for row in candidates if distance(row) <= nearest + 0.1]
        return steps * sum(alike) / len(alike)


def duration(seconds: float) -> str:
    """Seconds as people say them: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
