"""Training spectra streamed from the shards by Ray tasks, for a prefix that no node's disk can hold. `stream_order` has the
order.

A task reads a window of 4,096 spectra: 64 MiB with fixed noise and 4,096 pixels, twice that with fresh. A worker holds, in
Ray's object store, those it is drawing from, at most two of each of its streams, and `WINDOWS_AHEAD` that are read ahead.
Plain tasks, not a Ray dataset, whose scheduling would run in the process that trains.

Parquet's page checksums are verified as a row group is read, and row numbers compared: that is the guarantee for streamed
spectra. The manifest's checksums, which need whole shards, are compared by `scaling shard --verify` and by the node cache.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32
from numpy import ndarray

from scaling.data.batches.noise import FixedNoise
from scaling.data.batches.stream_order import STREAMS, Group, StreamOrder, Window
from scaling.data.shards.manifest import Manifest
from scaling.data.shards.shardfile import ERROR, FLUX, ROW_ID, column_values, row_groups
from scaling.errors import UserError

WINDOWS_AHEAD = STREAMS + 2
"""An epoch begins with a window of each stream: these are there when the one before ends."""


@dataclass(frozen=True, slots=True)
class Spectra:
    """Some rows of a stream: flux, without noise or with fixed noise; error (None with fixed noise); labels, in their own units."""

    flux: Float32[ndarray, "row pixel"]
    error: Float32[ndarray, "row pixel"] | None
    labels: Float[ndarray, "row label"]

    def part(self, start: int, stop: int) -> Spectra:
        """The rows from `start` to `stop`."""
        error = None if self.error is None else self.error[start:stop]
        return Spectra(self.flux[start:stop], error, self.labels[start:stop])


def load_window(
    window: Window, order: StreamOrder, pixels: int, labels: tuple[str, ...], noise: FixedNoise | None
) -> Spectra | str:
    """The Ray task: read, noise and shuffle a window.

    A user's mistake is returned in words, not raised: Ray would wrap it in tracebacks.
    """
    groups, places = order.window_groups(window)
    flux = np.empty((len(places), pixels), np.float32)
    error = None if noise else np.empty_like(flux)
    values = np.empty((len(places), len(labels)))
    at = 0
    try:
        for group in groups:
            path, where = order.files[group.shard], places[at : at + group.rows]
            clean, sigma, values[where] = _read_group(path, group, labels)
            if noise:
                flux[where] = noise.add(clean, sigma, split="train", first_row=group.first_row)
            else:
                flux[where] = clean
            if error is not None:
                error[where] = sigma
            at += group.rows
    except UserError as mistake:
        return str(mistake)
    return Spectra(flux, error, values)


def _read_group(path: Path, group: Group, labels: tuple[str, ...]) -> tuple[ndarray, ndarray, ndarray]:
    """Flux, error and labels of the rows of a group that belong to the prefix.

    Raises:
        UserError: The shard is damaged, or is not the one that belongs there, or a label is not finite.
    """
    table = next(row_groups(path, [group.group], [ROW_ID, FLUX, ERROR, *labels]))[: group.rows]
    expected = group.first_row + np.arange(group.rows)
    if not np.array_equal(column_values(table, ROW_ID), expected):
        raise UserError(
            f"{path}: row group {group.group} does not hold rows {expected[0]} to {expected[-1]}: "
            "remove this shard and run the same `scaling shard` command again"
        )
    values = np.stack([column_values(table, label).astype(np.float64) for label in labels], axis=1)
    bad, which = np.nonzero(~np.isfinite(values))
    if len(bad):
        raise UserError(f"{path}: label {labels[which[0]]!r} is not finite in row {expected[bad[0]]}; remove such rows")
    return column_values(table, FLUX), column_values(table, ERROR), values


class SpectrumStream:
    """One worker's share of the steps, read ahead by Ray tasks. Steps are cheapest in turn; any other begins anew."""

    def __init__(
        self,
        manifest: Manifest,
        order: StreamOrder,
        *,
        labels: tuple[str, ...],
        noise: FixedNoise | None,
        rank: int,
        world: int,
        readers: int,
    ) -> None:
        """Of the rows in `order`.

        Args:
            manifest: The shards.
            order: Of the prefix.
            labels: The columns of labels.
            noise: Fixed noise, drawn where a window is read; None leaves flux and error apart.
            rank: This worker's number.
            world: The number of workers.
            readers: Tasks that read side by side, on this node. They claim no CPU: those belong to trials already.

        Raises:
            UserError: There are more workers than streams, or Ray is not there.
        """
        import ray  # slow to import, and needed for streams only
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        if world > STREAMS:
            raise UserError(
                f"{world} workers of one trial stream spectra: at most {STREAMS} can; lower Placement.workers"
            )
        if not ray.is_initialized():
            raise UserError(
                "streamed spectra are read by Ray tasks, and Ray is not there: connect to Ray, or use 'mapped'"
            )
        self.order, self.streams, self._readers = order, range(rank, STREAMS, world), readers
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        self._read = ray.remote(load_window).options(num_cpus=0, scheduling_strategy=here)
        self._settings = ray.put(order), manifest.pixels, labels, noise
        self._next_step = -1
        self.close()

    def take(self, step: int) -> list[Spectra]:
        """This worker's rows of a step's batch, in order, in several pieces; valid until the next call.

        Raises:
            UserError: A shard is damaged.
        """
        if step != self._next_step:
            self._start(step)
        self._read_ahead()
        epoch, shares = step // self.order.steps_per_epoch, self.order.shares(step)
        pieces = []
        for stream in self.streams:
            start, stop = shares[stream]
            held = self._held[stream]
            while held and (held[0][0].epoch, held[0][0].start + held[0][0].rows) <= (epoch, start):
                held.popleft()
            while start < stop:
                window, spectra = next(
                    (h for h in held if h[0].epoch == epoch and h[0].start + h[0].rows > start), (None, None)
                )
                if window is None or spectra is None:
                    self._receive()
                    continue
                upto = min(stop, window.start + window.rows)
                pieces.append(spectra.part(start - window.start, upto - window.start))
                start = upto
        self._next_step = step + 1
        return pieces

    def close(self) -> None:
        """Let go of what was read; tasks under way end by themselves."""
        self._next_step = -1
        self._ahead: deque[tuple[Window, Any]] = deque()
        self._reading: list[Any] = []
        self._held: dict[int, deque[tuple[Window, Spectra]]] = {stream: deque() for stream in self.streams}

    def _start(self, step: int) -> None:
        self.close()
        self._plan = self.order.windows_from(step, self.streams)

    def _read_ahead(self) -> None:
        """Give every reader that is done the next window of the plan, up to `WINDOWS_AHEAD`."""
        import ray

        if len(self._ahead) == WINDOWS_AHEAD:
            return
        if self._reading:
            _, self._reading = ray.wait(self._reading, num_returns=len(self._reading), timeout=0)
        while len(self._ahead) < WINDOWS_AHEAD and len(self._reading) < self._readers:
            window = next(self._plan)
            task = self._read.remote(window, *self._settings)
            self._ahead.append((window, task))
            self._reading.append(task)

    def _receive(self) -> None:
        """Take the next window from the tasks and give it to its stream.

        Raises:
            UserError: It could not be read.
        """
        import ray

        self._read_ahead()
        window, task = self._ahead.popleft()
        while task in self._reading:
            _, self._reading = ray.wait(self._reading, num_returns=1)
            self._read_ahead()
        spectra = ray.get(task)
        if isinstance(spectra, str):
            raise UserError(spectra)
        self._held[window.stream].append((window, spectra))
