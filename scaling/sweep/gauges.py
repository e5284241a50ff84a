"""Prometheus metrics of a running study, beside Ray's own: exported by the driver through `ray.util.metrics`."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from ray.util.metrics import Gauge

from scaling.results import Row

if TYPE_CHECKING:
    from scaling.sweep.progress import Progress

STATES = ("running", "waiting", "done", "pruned", "diverged", "failed")
"""States of trials; waiting ones are an estimate, since not all of them are known yet."""


class Gauges:
    """A study's metrics exported by Ray, named "scaling_…" (Ray prepends "ray_") and tagged with the study.

    Trials by state, cells done and in total, devices busy and available, the smallest validation error; per size, the speed
    (samples/s of the trial, and its MFU) of the trial that ended last; and per node, the size of its memory maps at the last
    report of a trial there.
    """

    def __init__(self, study: str) -> None:
        self._study = study
        self._trials = self._gauge("trials", "Trials by state.", "state")
        self._cells = self._gauge("cells", "Cells of the grid, done and all.", "state")
        self._devices = self._gauge("devices", "Devices that trials occupy, and those there are.", "kind", "state")
        self._error = self._gauge("best_error", "Smallest validation error: MAE in dex, or error rate.")
        self._speed = self._gauge("samples_per_second", "Of the trial of a size that ended last.", "rung")
        self._mfu = self._gauge(
            "mfu", "Model FLOPs over the device's peak, of the trial of a size that ended last.", "rung"
        )
        self._cache = self._gauge("node_cache_bytes", "What the memory maps of a node take on its disk.", "node")

    def update(self, progress: Progress, left: int) -> None:
        """Publish the state of the sweep; `left` is the expected number of remaining trials, including running ones."""
        states = Counter(progress.states) + Counter(running=len(progress.running))
        states["waiting"] = max(0, left - len(progress.running))
        for state in STATES:
            self._set(self._trials, states[state], state=state)
        self._set(self._cells, progress.cells_done, state="done")
        self._set(self._cells, progress.num_cells, state="all")
        for kind, (busy, there) in progress.occupied().items():
            self._set(self._devices, busy, kind=kind, state="busy")
            self._set(self._devices, there, kind=kind, state="there")
        if progress.best is not None:
            self._set(self._error, progress.best.val_error)

    def measured(self, metrics: dict[str, Any]) -> None:
        """Publish a running trial's report about its node."""
        if "cache_bytes" in metrics:
            self._set(self._cache, metrics["cache_bytes"], node=metrics["host"])

    def ended(self, row: Row) -> None:
        """Publish the speed of a finished trial."""
        for gauge, value in ((self._speed, row.samples_per_second), (self._mfu, row.mfu)):
            if value == value:
                self._set(gauge, value, rung=row.rung)

    def _gauge(self, name: str, text: str, *tags: str) -> Gauge:
        return Gauge(f"scaling_{name}", description=text, tag_keys=("study", *tags))

    def _set(self, gauge: Gauge, value: float, **tags: str) -> None:
        gauge.set(float(value), tags={"study": self._study, **tags})
