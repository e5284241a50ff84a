"""The searcher: hands due trials with their nodes to Tune. The rows in the store are the source of truth.

`rates` determines the due trials and their learning rates, `admission` where they run; this module keeps the two in sync while
trials start and end. Optuna's journal and Tune's own folder are views of it.
"""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ray.tune.search import Searcher

from scaling.errors import UserError
from scaling.model.ladder import forward_flops
from scaling.results import Row
from scaling.study.declaration import Cell, Placement, Study
from scaling.sweep.admission import Admission, fits_ever
from scaling.sweep.baselines import Baselines, BaselineTask
from scaling.sweep.journal import Journal
from scaling.sweep.limits import (
    ALIKE,
    ATTEMPTS,
    BEGIN_SECONDS,
    BUSY_SECONDS,
    SETTLE_SECONDS,
)
from scaling.sweep.nodes import Node, Nodes
from scaling.sweep.progress import Progress
from scaling.sweep.rates import Rates
from scaling.sweep.trial import Trial
from scaling.sweep.waiting import Waiting

Result = dict[str, Any]


@dataclass(slots=True)
class Attempt:
    """One execution of a `Trial` or a `BaselineTask`: its nodes, start time, and latest report."""

    trial: Any
    placement: Placement
    nodes: tuple[str, ...]
    queued: bool
    handed_out: float
    begun: bool = False
    ended: float = 0.0
    result: Result = field(default_factory=dict)


class SweepSearch(Searcher):
    """Hands out trials by urgency: first those that others wait for, then those with the most work behind them.

    A trial that ends without a row is handed out again, up to `ATTEMPTS` attempts without progress in between; it resumes from
    its last state. An error of a node does not count: the node is set aside. `stopped` is why no more trials are handed out.
    """

    def __init__(
        self,
        study: Study,
        make_trial: Callable[..., Trial],
        rates: Rates,
        nodes: Nodes,
        journal: Journal,
        progress: Progress,
        ask_for: Callable[[list[dict[str, float]]], None],
        baselines: Baselines,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(metric=f"val_{study.data.rules.score}", mode="min")
        self.study, self.make_trial, self.rates = study, make_trial, rates
        self.nodes, self.journal, self.progress = nodes, journal, progress
        self.baselines, self.clock = baselines, clock
        self.admission, self.live = Admission(), dict[str, Attempt]()
        self.ready: dict[Placement, list[tuple[tuple[float, ...], Cell, int, float]]] = {}
        self.open: set[tuple[Cell, int]] = set()
        self.failures, self.alike = Counter[str](), Counter[str]()
        self.reached: dict[str, tuple[float, float]] = {}
        self.busy: dict[str, float] = {}
        self.unsettled: list[Attempt] = []
        self.next_try = 0.0
        self.waiting = Waiting(progress.say, ask_for, self.clock())
        self.stopped = ""
        for cell in rates.rows:
            self._queue(cell)

    def suggest(self, trial_id: str) -> Result | str | None:  # type: ignore[override]
        """The next trial as a Tune configuration, None if it must wait, FINISHED when no trial is due."""
        self._settle()
        if self.stopped or not (any(self.ready.values()) or self.baselines.waiting):
            return None if self.live or self.unsettled else Searcher.FINISHED
        now = self.clock()
        offers = [node for node in self.nodes.look() if self.busy.get(node.id, now) <= now]
        if self.nodes.problem:
            self.stopped = self.nodes.problem
            return None
        waiting: list[Placement] = []
        for placement in sorted((p for p, heap in self.ready.items() if heap), key=lambda p: self.ready[p][0][0]):
            nodes, queued = self.admission.place(placement, offers, waiting), False
            if not nodes and placement.host == "process" and not waiting:
                queued_at = [attempt.nodes[0] for attempt in self.live.values() if attempt.queued]
                nodes, queued = self.admission.queue(placement, offers, queued_at), True
            if nodes:
                return self._hand_out(trial_id, placement, nodes, queued)
            if fits_ever(placement, offers):
                waiting.append(placement)
        if task := self.baselines.next(self.admission, offers):  # no trial can use the free resources
            return self._start(trial_id, task, task.placement, task.nodes)
        self._wait(now, offers)
        return None

    def _hand_out(self, trial_id: str, placement: Placement, nodes: tuple[str, ...], queued: bool) -> Result:
        _, cell, number, lr = heapq.heappop(self.ready[placement])
        trial = self.make_trial(cell, number, lr, rival=self.rates.rival(cell, number), nodes=nodes)
        self.journal.running(cell, number, lr)
        return self._start(trial_id, trial, placement, nodes, queued)

    def _start(
        self, trial_id: str, trial: Trial | BaselineTask, place: Placement, nodes: tuple[str, ...], queued: bool = False
    ) -> Result:
        self.live[trial_id] = Attempt(trial, place, nodes, queued, self.clock())
        self.admission.start(trial_id, place, nodes)
        self.waiting.waits_since = self.clock()
        return {"trial": trial, **trial.about()}

    def on_trial_start(self, trial_id: str) -> None:
        """Record that Tune has a process for the trial. A trial under Ray Train still waits for its workers."""
        attempt = self.live.get(trial_id)
        if attempt is not None:
            attempt.queued, attempt.handed_out = False, self.clock()
            if attempt.placement.host == "process":
                self._begin(trial_id, attempt)

    def on_trial_result(self, trial_id: str, result: Result) -> None:
        """Record the progress of a trial."""
        attempt = self.live.get(trial_id)
        if attempt is None:
            return
        attempt.result = result
        self._begin(trial_id, attempt)
        if "train_loss" in result:
            key, point = attempt.trial.key, (result["budget_share"], result["step"])
            if point > self.reached.get(key, (0.0, 0.0)):  # further than any attempt: resets the count of failures
                self.reached[key] = point
                self.failures.pop(key, None)
            self.progress.measured(key, result)

    def _begin(self, trial_id: str, attempt: Attempt) -> None:
        if not attempt.begun:
            attempt.begun = True
            self.admission.begin(trial_id)
            if isinstance(attempt.trial, Trial):
                self.progress.started(attempt.trial.key, attempt.trial.cell, self.nodes.hosts(attempt.nodes))

    def overdue(self) -> list[str]:
        """Trials to stop because one of their nodes is lost, or has no room after all; they are handed out again."""
        now, there = self.clock(), {node.id for node in self.nodes.look()}
        found = []
        for trial_id, attempt in self.live.items():
            late = not attempt.begun and not attempt.queued and now - attempt.handed_out > BEGIN_SECONDS
            # With `min_workers`, Ray Train itself continues on the remaining nodes.
            lost = attempt.placement.min_workers is None and not there.issuperset(attempt.nodes)
            if late:
                self.busy |= dict.fromkeys(attempt.nodes, now + BUSY_SECONDS)
            if late or (lost and (attempt.placement.host == "ray_train" or not attempt.begun)):
                attempt.begun = False  # not the trial's fault, and there is no row to wait for
                found.append(trial_id)
        return found

    def on_trial_complete(self, trial_id: str, result: Result | None = None, error: bool = False) -> None:
        """Process the end of a trial: its row, or the reason why there is none."""
        attempt = self.live.pop(trial_id, None)
        if attempt is None:
            return
        self.admission.end(trial_id)
        attempt.result, attempt.ended = attempt.result | (result or {}), self.clock()
        self.waiting.idle_since = attempt.ended
        self.unsettled.append(attempt)
        self.next_try = 0.0
        self._settle()

    def _settle(self) -> None:
        """Conclude ended attempts. If the store does not respond, this is retried later, so that nothing is lost."""
        if not self.unsettled or self.clock() < self.next_try:
            return
        waiting, self.unsettled = self.unsettled, []
        self.next_try = self.clock() + 1.0
        for attempt in waiting:
            try:
                if not self._conclude(attempt):
                    self.unsettled.append(attempt)
            except UserError as error:  # the store is full, or a row in it is damaged
                self.stopped = str(error)
            except OSError as error:
                self.unsettled.append(attempt)
                self.progress.say(f"the store does not answer ({error}); trying again")
                self.next_try = self.clock() + SETTLE_SECONDS

    def _conclude(self, attempt: Attempt) -> bool:
        """Process the result of an attempt; False while its row may still become visible."""
        trial, said = attempt.trial, attempt.result
        if "row" in said:
            self._finished(trial, Row.from_json(said["row"], trial.key))
        elif "rows" in said:
            self.baselines.finished(Row.from_json(row, trial.key) for row in said["rows"])
        elif "full" in said:
            self.stopped = said["full"]
        elif "node" in said:
            self.nodes.set_aside(said["node_id"] or attempt.nodes[0], said["node"])
            self._again(trial, said["node"])
        elif "mistake" in said:  # such as a damaged shard: a retry would not help
            self._give_up(trial, said["mistake"])
        elif isinstance(trial, Trial) and (row := trial.output.await_row(0.0)) is not None:
            self._finished(trial, row)
        elif "failure" in said or not attempt.begun or self.clock() - attempt.ended >= SETTLE_SECONDS:
            self._failed(attempt)
        else:
            return False
        return True

    def _failed(self, attempt: Attempt) -> None:
        """Hand out a trial without a result again, or give it up."""
        trial, where = attempt.trial, self.nodes.hosts(attempt.nodes)
        reason = attempt.result.get("failure") or f"its process on {where} ended without a word"
        if attempt.begun:
            self.failures[trial.key] += 1
        if self.failures[trial.key] < ATTEMPTS:
            self._again(trial, reason if attempt.begun else "")
        else:
            self._give_up(trial, reason)

    def _give_up(self, trial: Trial | BaselineTask, reason: str) -> None:
        if isinstance(trial, BaselineTask):
            self.baselines.finished(trial.fail(reason))
        else:
            self._finished(trial, trial.fail(reason))

    def _again(self, trial: Trial | BaselineTask, reason: str) -> None:
        """Hand out a trial again; it resumes from its last state."""
        if isinstance(trial, BaselineTask):
            self.baselines.lost(trial, reason)
            return
        self.open.discard((trial.cell, trial.number))
        self.journal.lost(trial.cell, trial.number)
        self._queue(trial.cell)
        self.progress.lost(trial.key, reason)

    def _finished(self, trial: Trial, row: Row) -> None:
        self.open.discard((trial.cell, trial.number))
        self.failures.pop(trial.key, None)
        for cell in self.rates.add(row):
            self._queue(cell)
        self.journal.finished(trial.cell, trial.number, row)
        self.progress.add(row)
        if row.status != "failed":
            self.nodes.trial_finished()
        self.alike = Counter() if row.status != "failed" else self.alike + Counter([row.error])
        if self.alike and max(self.alike.values()) >= ALIKE:
            self.stopped = f"{ALIKE} trials failed alike and none succeeded between them: {row.error}"

    def _queue(self, cell: Cell) -> None:
        """Queue the cell's due trials, unless they are queued already."""
        placement = self.study.placement(cell)
        heap = self.ready.setdefault(placement, [])
        for number, lr in self.rates.due(cell):
            if (cell, number) not in self.open:
                self.open.add((cell, number))
                heapq.heappush(heap, (self._urgency(cell, number), cell, number, lr))

    def _urgency(self, cell: Cell, number: int) -> tuple[float, ...]:
        """Sort key: first cells that all others wait for, then the longest remaining path to a cell's end."""
        placement, recipe = self.study.placement(cell), self.study.recipe
        share = placement.workers * (min(1.0, placement.gpus) or placement.cpus)
        steps = recipe.budget.steps(cell.num_spectra, recipe.batch_size)
        way = forward_flops(self.study.model(cell.width)) * steps / share * self.rates.rounds(cell)
        return (cell not in self.rates.anchors, -way, -cell.num_spectra, cell.width, cell.seed, number)

    def _wait(self, now: float, offers: list[Node]) -> None:
        """Report the reason for waiting, and stop when it is hopeless."""
        ready = Counter({placement: len(heap) for placement, heap in self.ready.items() if heap})
        ready.update(task.placement for task in self.baselines.waiting)
        live = {attempt.trial.key: attempt.placement for attempt in self.live.values()}
        self.stopped = self.waiting.look(now, offers, ready, live, self.nodes.pending)

    def save(self, checkpoint_path: str) -> None:
        """No-op: the store is the state."""

    restore = save

    def __getstate__(self) -> Result:
        """Exclude the searcher's state from Tune's own snapshot, which is never read."""
        return {}
