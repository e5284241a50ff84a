"""Training spectra streamed from the shards through Ray Data, for a prefix that no node's disk can hold. `stream_order` has
the order.

What a worker holds: in Ray's object store the windows it is drawing from, at most two of each of its streams, and the
ones ahead, at most 16 however slowly it trains. They are read as Ray datasets of `WINDOWS_PER_DATASET` windows, each begun
when the one before begins to be drawn from. One long dataset would not do: while Ray Data holds back what its consumer
is not ready for, its scheduling loop spins, and takes the interpreter from the training it feeds.
A window has 4,096 spectra: 64 MiB with fixed noise and 4,096 pixels, twice that with fresh.

Parquet's page checksums are verified as a row group is read, and row numbers compared: that is the guarantee for streamed
spectra. The manifest's checksums, which need whole shards, are compared by `scaling shard --verify` and by the node cache.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import queue
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32
from numpy import ndarray

from scaling.data.manifest import Manifest
from scaling.data.noise import FixedNoise
from scaling.data.shardfile import ERROR, FLUX, ROW_ID, column_values, row_groups
from scaling.data.stream_order import STREAMS, Group, StreamOrder, Window
from scaling.errors import UserError

WINDOWS_PER_DATASET = 8
NO_PROBLEM = ""


@dataclass(frozen=True, slots=True)
class Spectra:
    """Some rows of a stream: flux, without noise or with fixed noise; error (None with fixed noise); label, in dex."""

    flux: Float32[ndarray, "row pixel"]
    error: Float32[ndarray, "row pixel"] | None
    label: Float[ndarray, " row"]

    def part(self, start: int, stop: int) -> Spectra:
        """The rows from `start` to `stop`."""
        error = None if self.error is None else self.error[start:stop]
        return Spectra(self.flux[start:stop], error, self.label[start:stop])


def load_window(
    batch: dict[str, ndarray], *, order: StreamOrder, pixels: int, label: str, noise: FixedNoise | None
) -> dict[str, ndarray]:
    """The Ray task: read, noise and shuffle the window that the one row of `batch` names.

    A user's mistake is returned in the column `problem`, not raised: Ray would wrap it in tracebacks.
    """
    window = Window(*(int(batch[name][0]) for name in Window._fields))
    groups, places = order.window_groups(window)
    flux = np.empty((len(places), pixels), np.float32)
    error = None if noise else np.empty_like(flux)
    labels = np.empty(len(places))
    at = 0
    try:
        for group in groups:
            path, where = order.files[group.shard], places[at : at + group.rows]
            clean, sigma, labels[where] = _read_group(path, group, label)
            if noise:
                flux[where] = noise.add(clean, sigma, split="train", first_row=group.first_row)
            else:
                flux[where] = clean
            if error is not None:
                error[where] = sigma
            at += group.rows
    except UserError as mistake:
        flux, error, labels = flux[:1], None if error is None else error[:1], labels[:1]
        return _columns(flux, error, labels, str(mistake))
    return _columns(flux, error, labels, NO_PROBLEM)


def _columns(flux: ndarray, error: ndarray | None, labels: ndarray, problem: str) -> dict[str, ndarray]:
    columns = {"flux": flux, "label": labels, "problem": np.full(len(labels), problem)}
    return columns if error is None else columns | {"error": error}


def _read_group(path: Path, group: Group, label: str) -> tuple[ndarray, ndarray, ndarray]:
    """Flux, error and label of the rows of a group that belong to the prefix.

    Raises:
        UserError: The shard is damaged, or is not the one that belongs there, or a label is not finite.
    """
    table = next(row_groups(path, [group.group], [ROW_ID, FLUX, ERROR, label]))[: group.rows]
    expected = group.first_row + np.arange(group.rows)
    if not np.array_equal(column_values(table, ROW_ID), expected):
        raise UserError(
            f"{path}: row group {group.group} does not hold rows {expected[0]} to {expected[-1]}: "
            "remove this shard and run the same `scaling shard` command again"
        )
    labels = column_values(table, label).astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(labels))
    if len(bad):
        raise UserError(f"{path}: label {label!r} is not finite in row {expected[bad[0]]}; remove such rows")
    return column_values(table, FLUX), column_values(table, ERROR), labels


class SpectrumStream:
    """One worker's share of the steps, read ahead by Ray tasks. Steps are cheapest in turn; any other begins anew."""

    def __init__(
        self,
        manifest: Manifest,
        order: StreamOrder,
        *,
        label: str,
        noise: FixedNoise | None,
        rank: int,
        world: int,
        readers: int,
    ) -> None:
        """Of the rows in `order`.

        Args:
            manifest: The shards.
            order: Of the prefix.
            label: The column of labels.
            noise: Fixed noise, drawn where a window is read; None leaves flux and error apart.
            rank: This worker's number.
            world: The number of workers.
            readers: Tasks that read side by side. They claim no CPU: those belong to trials already.

        Raises:
            UserError: There are more workers than streams, or Ray is not there.
        """
        import ray

        if world > STREAMS:
            raise UserError(
                f"{world} workers of one trial stream spectra: at most {STREAMS} can; lower Placement.workers"
            )
        if not ray.is_initialized():
            raise UserError(
                "streamed spectra are read by Ray tasks, and Ray is not there: connect to Ray, or use 'mapped'"
            )
        self.order, self.streams, self._readers = order, range(rank, STREAMS, world), readers
        self._load = functools.partial(load_window, order=order, pixels=manifest.pixels, label=label, noise=noise)
        self._next_step, self._feeds = -1, deque[_Feed]()

    def take(self, step: int) -> list[Spectra]:
        """This worker's rows of a step's batch, in order, in several pieces; valid until the next call.

        Raises:
            UserError: A shard is damaged.
        """
        if step != self._next_step:
            self._start(step)
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
        """Stop reading."""
        for feed in self._feeds:
            feed.close()
        while self._feeds:
            self._feeds.popleft().join()
        self._held: dict[int, deque[tuple[Window, Spectra]]] = {stream: deque() for stream in self.streams}
        self._next_step = -1

    def _start(self, step: int) -> None:
        self.close()
        self._plan = self.order.windows_from(step, self.streams)
        self._begin_feed()

    def _begin_feed(self) -> None:
        windows = list(itertools.islice(self._plan, WINDOWS_PER_DATASET))
        self._feeds.append(_Feed(windows, self._load, self._readers))

    def _receive(self) -> None:
        """Take the next window from the tasks and give it to its stream."""
        feed = self._feeds[0]
        window, spectra = feed.get()
        self._held[window.stream].append((window, spectra))
        if len(self._feeds) == 1:
            self._begin_feed()
        if not feed.left:
            self._feeds.popleft()


class _Feed:
    """A Ray dataset of a few windows, run to its end from a thread while nobody waits for it."""

    def __init__(self, windows: list[Window], load: Any, readers: int) -> None:
        self._windows = deque(windows)
        self._arrived: queue.Queue[dict[str, ndarray] | Exception] = queue.Queue()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(load, readers), daemon=True, name="window-feed")
        self._thread.start()

    @property
    def left(self) -> int:
        """Windows not handed out yet."""
        return len(self._windows)

    def get(self) -> tuple[Window, Spectra]:
        """The next window.

        Raises:
            UserError: It could not be read.
        """
        arrived, window = self._arrived.get(), self._windows.popleft()
        if isinstance(arrived, Exception):
            raise arrived
        if problem := str(arrived["problem"][0]):
            raise UserError(problem)
        spectra = Spectra(arrived["flux"], arrived.get("error"), arrived["label"])
        assert len(spectra.label) == window.rows, "Ray Data gave a window out of turn"
        return window, spectra

    def close(self) -> None:
        """Let the thread end, and the tasks with it."""
        self._closed.set()

    def join(self) -> None:
        """Wait until they have ended."""
        self._thread.join(timeout=30)

    def _run(self, load: Any, readers: int) -> None:
        try:
            dataset = _dataset(list(self._windows), load, readers)
            batches = iter(dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=1))
            with contextlib.closing(batches):
                for batch in batches:
                    self._arrived.put(batch)
                    if self._closed.is_set():
                        return
        except Exception as error:  # whatever ended the dataset is the consumer's to raise
            self._arrived.put(error)


def _dataset(windows: list[Window], load: Any, readers: int) -> Any:
    """One block a window, in order."""
    import ray.data  # slow to import, and needed only here

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    dataset = ray.data.from_items([window._asdict() for window in windows], override_num_blocks=len(windows))
    context = dataset.context
    context.enable_progress_bars = False
    context.target_max_block_size = None  # a window is one block, whatever its size
    context.execution_options.preserve_order = True
    return dataset.map_batches(load, batch_size=None, num_cpus=0, concurrency=readers)
