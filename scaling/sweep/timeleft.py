"""Remaining time of a sweep with parallel trials, estimated from those measured so far."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scaling.model.ladder import train_flops
from scaling.results import Row
from scaling.study.declaration import Cell, Placement, Study


@dataclass(slots=True)
class _Kind:
    """Trials of one kind: their host, spectra, FLOPs per step, and running sums."""

    host: str
    spectra: int
    flops: float
    steps: float = 0.0
    seconds: float = 0.0
    trials: int = 0


class TimeLeft:
    """Learns the duration of trials from rows, aggregated by kind, so that queries do not slow down with more rows."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.kinds: dict[tuple[str, int, int], _Kind] = {}

    def add(self, row: Row) -> None:
        """Add a measured trial."""
        if not row.steps or math.isnan(row.wall_seconds):
            return
        key = (row.host, row.num_params, row.num_spectra)
        kind = self.kinds.setdefault(key, _Kind(row.host, row.num_spectra, row.train_flops / row.steps))
        kind.steps, kind.seconds, kind.trials = kind.steps + row.steps, kind.seconds + row.wall_seconds, kind.trials + 1

    def trial_seconds(self, cell: Cell) -> float | None:
        """Estimate from the trials most similar in FLOPs per step, steps and spectra, on the same host if possible."""
        if not self.kinds:
            return None
        config, recipe = self.study.model(cell.width), self.study.recipe
        steps = recipe.budget.steps(cell.num_spectra, recipe.batch_size)
        flops = math.log(train_flops(config, recipe.batch_size))

        def distance(kind: _Kind) -> float:
            length, spectra = kind.steps / kind.trials / steps, kind.spectra / cell.num_spectra
            return abs(math.log(kind.flops) - flops) + 0.1 * abs(math.log(length)) + 0.01 * abs(math.log(spectra))

        host = self.study.placement(cell).host
        candidates = [kind for kind in self.kinds.values() if kind.host == host] or list(self.kinds.values())
        nearest = min(candidates, key=distance)
        return steps * nearest.seconds / nearest.steps

    def seconds_left(
        self, left: list[tuple[Cell, int]], running: list[tuple[Cell, float]], there: dict[str, float]
    ) -> float | None:
        """Lower bound for any schedule: all work spread over all devices, or the longest chain of one cell's trials.

        Args:
            left: Expected number of trials without a row per cell, including running ones.
            running: The cell of each running trial, and its current step.
            there: The cluster's resources.
        """
        if not self.kinds or not there:
            return None
        busy: dict[str, float] = {}
        chains = [0.0]
        at_work: dict[Cell, list[float]] = {}
        for cell, step in running:
            at_work.setdefault(cell, []).append(step)
        seconds: dict[tuple[int, int], float] = {}
        for cell, count in left:
            key = (cell.width, cell.num_spectra)
            if key not in seconds:
                seconds[key] = self.trial_seconds(cell) or 0.0
            steps = self.study.recipe.budget.steps(cell.num_spectra, self.study.recipe.batch_size)
            begun = [seconds[key] * max(0.0, 1 - step / steps) for step in at_work.get(cell, [])]
            later = seconds[key] * max(0, count - len(begun))
            chains.append(max(begun, default=0.0) + later)
            for name, need in needs(self.study.placement(cell)).items():
                busy[name] = busy.get(name, 0.0) + need * (sum(begun) + later)
        return max(chains + [work / there[name] for name, work in busy.items() if there.get(name)])


def needs(placement: Placement) -> dict[str, float]:
    """Resources of a trial while it runs."""
    return {"CPU": placement.cpus * placement.workers, "GPU": placement.gpus * placement.workers}
