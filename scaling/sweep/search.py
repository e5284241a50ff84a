"""The searcher: one `optuna.Study` a cell, all cells in one Tune run. The rows in the store are the truth.

Trial k of a cell is a pure function of the declaration and of the results of earlier rounds, so a study that was
killed and continued suggests exactly what an undisturbed one does. Optuna's journal is a live view for dashboards
and can be rebuilt from the rows at any time.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import FloatDistribution
from ray.tune.search import Searcher

from scaling.data.seeds import stable_seed
from scaling.files import FullError
from scaling.model.ladder import forward_flops
from scaling.results import Row
from scaling.study.declaration import Cell, Placement, Search, Study
from scaling.study.store import FULL
from scaling.sweep.journal import Journal
from scaling.sweep.progress import Progress
from scaling.sweep.trial import Trial

MAX_LOST = 2
"""How often a trial whose processes ended without a word is handed out again."""

History = list[tuple[float, float]]
optuna.logging.set_verbosity(optuna.logging.WARNING)


def suggest_lr(search: Search, cell: Cell, number: int, history: History) -> float:
    """The learning rate of a cell's trial `number`, given the (learning rate, validation error) of all earlier rounds.

    The declared factors come first; then TPE over log(learning rate), its generator seeded by (cell, number).
    """
    space = _space(search, cell)
    if number < len(search.factors):  # within the bounds even where a factor is the span itself, to the last bit
        return min(max(search.centre(cell.width) * search.factors[number], space["lr"].low), space["lr"].high)
    sampler = optuna.samplers.TPESampler(seed=stable_seed("search", cell.key, number) % 2**32, n_startup_trials=3)
    past = optuna.create_study(sampler=sampler)
    for lr, error in history:
        value = error if math.isfinite(error) else math.inf
        past.add_trial(optuna.create_trial(params={"lr": lr}, distributions=dict(space), value=value))
    return past.ask(fixed_distributions=dict(space)).params["lr"]


def open_rounds(search: Search, cell: Cell, rows: dict[int, Row]) -> list[tuple[int, float]]:
    """The trials (number, learning rate) of a cell's present round that have no row; empty when the cell is done."""
    start, history = 0, History()
    while start < search.trials:
        size = len(search.factors) if start == 0 else search.round_size
        numbers = range(start, min(start + size, search.trials))
        missing = [number for number in numbers if number not in rows]
        if missing:
            return [(number, suggest_lr(search, cell, number, history)) for number in missing]
        history += [(rows[number].lr, rows[number].val_error) for number in numbers]
        start += size
    return []


def needs(placement: Placement) -> dict[str, float]:
    """Resources a trial occupies while it runs."""
    return {"CPU": placement.cpus * placement.workers, "GPU": placement.gpus * placement.workers}


class CellSearch(Searcher):
    """Hands out trials longest first, and records results in one Optuna study a cell.

    A trial under Ray Train asks for its workers itself, behind Tune's back. So that it never starves, trials are handed
    out strictly in order, and only when the cluster has room for the next; just one single-process trial may wait in
    Tune's queue, which lets Tune hand it a finished trial's process instead of starting a new one.

    `no_room` says so if a trial ended because the store is full: it gets no row, and no other is handed out.
    """

    def __init__(
        self,
        study: Study,
        make_trial: Callable[[Cell, int, float], Trial],
        rows: list[Row],
        journal: str,
        capacity: Callable[[], dict[str, float]],
        on_row: Callable[[Row], None],
    ) -> None:
        super().__init__(metric=f"val_{study.data.rules.score}", mode="min")
        self.study, self.make_trial, self.capacity, self.on_row = study, make_trial, capacity, on_row
        self.live: dict[str, Trial] = {}
        self.no_room = ""
        self.lost: Counter[str] = Counter()
        self.cells = sorted(study.cells(), key=lambda cell: _order(study, cell))
        by_key = {row.trial: row for row in rows}
        self.rows: dict[Cell, dict[int, Row]] = {}
        for cell in self.cells:
            keys = ((number, cell.trial(number)) for number in range(study.search.trials))
            self.rows[cell] = {number: by_key[key] for number, key in keys if key in by_key}
        self.journal = Journal(study, Path(journal), rows)
        self.progress: Progress | None = None
        self.waiting = {cell: open_rounds(study.search, cell, self.rows[cell]) for cell in self.cells}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """The next trial as a Tune configuration, None if it must wait, FINISHED when every trial has its row."""
        ready = [cell for cell in self.cells if self.waiting[cell] and not self.no_room]
        if not ready:
            return None if self.live else Searcher.FINISHED
        cell = ready[0]
        if not self._admits(self.study.placement(cell)):
            return None
        number, lr = self.waiting[cell].pop(0)
        self.live[trial_id] = self.make_trial(cell, number, lr)
        self.journal.running(cell, number, lr)
        if self.progress is not None:
            self.progress.started(cell.trial(number), cell)
        return {"trial": self.live[trial_id], **self.live[trial_id].about()}

    def remaining(self) -> list[tuple[Cell, int]]:
        """The cells that are not done, each with its trials without a row."""
        left = [(cell, self.study.search.trials - len(self.rows[cell])) for cell in self.cells]
        return [(cell, count) for cell, count in left if count]

    def _admits(self, placement: Placement) -> bool:
        running = [self.study.placement(trial.cell) for trial in self.live.values()]
        capacity = self.capacity()

        def fits(placements: list[Placement]) -> bool:
            used = [needs(each) for each in placements]
            return all(sum(n[name] for n in used) <= capacity.get(name, 0.0) + 1e-9 for name in ("CPU", "GPU"))

        if fits([*running, placement]):
            return True
        if not running and placement.min_workers:  # the cluster has shrunk
            return fits([dataclasses.replace(placement, workers=placement.min_workers)])
        # The one that may wait: never beside a trial under Ray Train, whose place it could take.
        single = placement.host == "process" and all(each.host == "process" for each in running)
        return single and fits(running)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Read the trial's row, which its process wrote before it ended, and open the cell's next round if it is due."""
        trial = self.live.pop(trial_id, None)
        if trial is None:
            return
        row = trial.output.read_row()
        if row is None:
            row = self._failed_row(trial)
        if row is None:
            return
        cell = trial.cell
        self.rows[cell][trial.number] = row
        self.journal.finished(cell, trial.number, row)
        if not self.waiting[cell] and all(other.cell != cell for other in self.live.values()):
            self.waiting[cell] = open_rounds(self.study.search, cell, self.rows[cell])
        self.on_row(row)

    def _failed_row(self, trial: Trial) -> Row | None:
        """Write the row of a trial that left none; None if it gets none yet.

        A process that ended without a word, as when its node was lost, says little about the trial: Tune's attempts may
        all have met processes that were lost at once. Such a trial is handed out again.
        """
        reason = trial.output.read_error()
        if reason is None and self.lost[trial.key] < MAX_LOST:
            self.lost[trial.key] += 1
            self.waiting[trial.cell].insert(0, (trial.number, trial.lr))
            self.journal.lost(trial.cell, trial.number)
            if self.progress is not None:
                self.progress.lost(trial.key, "its process ended without a word")
            return None
        reason = reason or "its process ended without a row or an error; see the Ray logs"
        try:
            if reason.startswith(FULL):
                trial.output.delete_row()  # the reason is of this attempt, not of a later one
                raise FullError(reason.removeprefix(FULL))
            row = trial.failed_row(reason)
            trial.write_row(row)
        except FullError as error:
            self.no_room = str(error)
            return None
        return row

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Show it; results are read from rows."""
        trial = self.live.get(trial_id)
        if trial is not None and self.progress is not None:
            self.progress.measured(trial.key, result)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the store is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the store is the state."""

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searcher into its own snapshot, which we never read."""
        return {}


def _order(study: Study, cell: Cell) -> tuple[bool, int, int, int, int]:
    """Trials under Ray Train first, then by cost: the longest must not be started last."""
    steps = study.recipe.budget.steps(cell.num_spectra, study.recipe.batch_size)
    flops = forward_flops(study.model(cell.width)) * steps
    return (study.placement(cell).host != "ray_train", -flops, -cell.num_spectra, cell.width, cell.seed)


def _space(search: Search, cell: Cell) -> dict[str, FloatDistribution]:
    centre = search.centre(cell.width)
    return {"lr": FloatDistribution(centre / search.span, centre * search.span, log=True)}
