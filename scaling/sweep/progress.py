"""Progress display of a running study: a live table on a terminal, plain lines in a job's log."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from scaling.console import duration
from scaling.results import ERROR_RATE, MAE, Row
from scaling.study.declaration import Cell, Study
from scaling.sweep.timeleft import TimeLeft, needs

if TYPE_CHECKING:
    from scaling.sweep.gauges import Gauges

QUIET_SECONDS = 60.0
"""Maximum interval between log lines while trials report."""
NAMED = 4
"""Number of running trials named in a log line."""
TICK_SECONDS = 1.0

Resources = dict[str, float]


@dataclass(slots=True)
class Running:
    """A running trial and its latest report."""

    cell: Cell
    place: str
    started: float = field(default_factory=time.monotonic)
    metrics: dict[str, Any] = field(default_factory=dict)


class Progress:
    """Counts trials and cells and prints lines about them. A line costs the same after 10 and after 2,000 trials.

    As a context manager it shows one live table instead of a line per trial, on a terminal.

    Args:
        study: The declaration.
        rows: The existing rows.
        write: Called with each line.
        devices: The cluster's current resources, such as {"CPU": 2.0}; empty if unknown.
        remaining: For each unfinished cell, the expected number of trials without a row, including running ones.
        gauges: Prometheus metrics to keep up to date.
    """

    def __init__(
        self,
        study: Study,
        rows: list[Row],
        write: Callable[[str], None],
        *,
        devices: Callable[[], Resources],
        remaining: Callable[[], list[tuple[Cell, int]]],
        gauges: Gauges | None = None,
    ) -> None:
        self.study, self.devices, self.write, self.remaining, self.gauges = study, devices, write, remaining, gauges
        self.states = Counter[str]()
        self.num_cells = len(study.cells())
        self.measure = MAE if study.data.rules.boundary is None else ERROR_RATE
        self.running: dict[str, Running] = {}
        self.trials: set[str] = set()
        self.best: Row | None = None
        self.latest = ""
        self.time_left = TimeLeft(study)
        self.live_table: Live | None = None
        self._left: list[tuple[Cell, int]] = []
        self._there: Resources = {}
        self._updated = self._written = -math.inf
        for row in rows:
            self._count(row)

    def started(self, trial: str, cell: Cell, place: str = "") -> None:
        """Record that a trial was assigned to a device or a node."""
        self.running[trial] = Running(cell, place)
        self._update()

    def measured(self, trial: str, metrics: dict[str, Any]) -> None:
        """Record an evaluation of a running trial: its columns of the curve, and its report about its node."""
        if trial in self.running:
            self.running[trial].metrics = metrics
        if self.gauges is not None:
            self.gauges.measured(metrics)
        now = time.monotonic()
        if now - self._updated > TICK_SECONDS:
            self._update()
        if self.live_table is None and now - self._written > QUIET_SECONDS:
            self.say(self.line())

    def add(self, row: Row) -> None:
        """Record the row of a finished trial."""
        self._count(row)
        self.running.pop(row.trial, None)
        self._update()
        result = self._scores(row) if row.status == "done" else row.status.upper()
        self.latest = f"{row.trial} lr {row.lr:.2g}: {result} in {duration(row.wall_seconds)}"
        if self.live_table is None:
            self.say(f"{self.latest} | {self.line()}")
        elif row.status == "failed":
            self.say(f"{row.trial} failed: {row.error}")

    def lost(self, trial: str, reason: str) -> None:
        """Record that an attempt ended without a row; the trial is retried."""
        gone = self.running.pop(trial, None)
        where = f" on {gone.place}" if gone is not None and gone.place else ""
        why = f" ({reason})" if reason else ""
        self._update()
        self.say(f"{trial}: lost{where}{why}; it resumes from its last checkpoint")

    def say(self, text: str) -> None:
        """Print a line, into the log or above the live table."""
        self._written = time.monotonic()
        self.write(text)

    def __enter__(self) -> Progress:
        if Console().is_terminal:
            self.live_table = Live(get_renderable=self.table, refresh_per_second=1 / TICK_SECONDS)
            self.live_table.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.live_table is not None:
            self.live_table.stop()
            self.live_table = None

    def line(self) -> str:
        """One line: trials, cells, devices, best cell, time left, and running trials with their latest error."""
        named = [f"{trial} {self._last(each)}" for trial, each in self._at_work()[:NAMED]]
        more = len(self.running) - len(named)
        parts = [
            *self._summary(),
            *([f"running {', '.join(named)}" + (f" and {more} more" if more else "")] if named else []),
        ]
        return " | ".join(parts)

    def table(self) -> RenderableType:
        """The same information as a table for a terminal."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("running trial", "where", "for", "step", f"val {self.measure.name}"):
            table.add_column(name, justify="left" if name in ("running trial", "where") else "right", no_wrap=True)
        for trial, each in self._at_work():
            place, seconds = each.place or "-", time.monotonic() - each.started
            step = each.metrics.get("step")
            table.add_row(trial, place, duration(seconds), "-" if step is None else f"{step:.0f}", self._value(each))
        head = Text(f"{self.study.name}  ", style="bold") + Text("\n".join(self._summary()), style="not bold")
        lines: list[RenderableType] = [
            head,
            *([table] if self.running else []),
            *([Text(self.latest)] if self.latest else []),
        ]
        return Group(*lines)

    def seconds_left(self) -> float | None:
        """Lower bound on the remaining time with the available devices; None before anything is measured."""
        if self._updated == -math.inf:
            self._update()
        running = [(each.cell, each.metrics.get("step", 0.0)) for each in list(self.running.values())]
        return self.time_left.seconds_left(self._left, running, self._there)

    def _update(self) -> None:
        """Query the searcher and the cluster, at a limited rate."""
        self._left, self._there, self._updated = self.remaining(), self.devices(), time.monotonic()
        if self.gauges is not None:
            self.gauges.update(self, sum(count for _, count in self._left))

    def _count(self, row: Row) -> None:
        self.states[row.status] += row.trial not in self.trials
        self.trials.add(row.trial)
        self.time_left.add(row)
        if self.gauges is not None:
            self.gauges.ended(row)
        if row.status == "done" and (self.best is None or row.val_error < self.best.val_error):
            self.best = row

    def _summary(self) -> list[str]:
        if self._updated == -math.inf:
            self._update()
        total = len(self.trials) + sum(count for _, count in self._left)
        parts = [f"trials {len(self.trials)}/{total}", f"cells {self.cells_done}/{self.num_cells}"]
        parts += self._busy()
        if self.best is not None:
            parts.append(f"best cell {self.best.cell}: {self._scores(self.best)}")
        left = self.seconds_left()
        if left is not None and self._left:
            parts.append(f"about {duration(left)} left")
        return parts

    @property
    def cells_done(self) -> int:
        """Number of finished cells."""
        return self.num_cells - len(self._left)

    def occupied(self) -> dict[str, tuple[float, float]]:
        """Devices in use and available, by kind, if the cluster is known."""
        used = [needs(self.study.placement(each.cell)) for each in list(self.running.values())]
        return {name: (sum(each[name] for each in used), there) for name, there in self._there.items() if there}

    def _busy(self) -> list[str]:
        """GPUs in use if the study uses them, else CPUs."""
        name = "GPU" if any(place.gpus for place in self.study.placements) else "CPU"
        return [f"{name}s busy {used:g}/{there:g}" for kind, (used, there) in self.occupied().items() if kind == name]

    def _at_work(self) -> list[tuple[str, Running]]:
        return sorted(self.running.items())

    def _last(self, running: Running) -> str:
        return f"val {self._value(running)}" if self.measure.val in running.metrics else "begins"

    def _value(self, running: Running) -> str:
        value = running.metrics.get(self.measure.val)
        return "-" if value is None else self.measure.value(value)

    def _scores(self, row: Row) -> str:
        return f"val {row.measure.named(row.val_error)}, test {row.measure.named(row.test_error)}"
