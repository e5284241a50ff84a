"""The order of streamed spectra: which rows make up each step, and in which windows they are read. Needs no Ray.

It is a pure function of (seed, epoch), the same for any number of workers, so that the step number is all there
is to resume from. In each epoch the row groups of the prefix (512 spectra each) are permuted and dealt to `STREAMS`
virtual streams, as cards are. A stream shuffles its rows within windows of `WINDOW_GROUPS` row groups. Step s of the S
steps of an epoch takes from a stream of n rows those from ⌊s·n/S⌋ to ⌊(s+1)·n/S⌋: every row once an epoch, in batches
whose sizes differ by at most `STREAMS`, on average D/S. Worker r of k serves streams r, r + k, …

What a window costs: a batch mixes rows of at most 64 row groups, over all streams 32,768 spectra, and not of the whole
prefix. In a study order, where neighbours are no more alike than other spectra, that is no loss. Were a source sorted by
its label, the mean label of a batch of 256 would scatter 2.1 times as much as under a full shuffle, about as one of 64
spectra does (`tests/data/test_stream.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from scaling.data.seeds import stable_seed
from scaling.data.shards.manifest import Manifest
from scaling.data.shards.shardfile import ROW_GROUP_ROWS

STREAMS = 8
WINDOW_GROUPS = 8
"""Part, as `STREAMS`, of what a seed means for the order."""


class Group(NamedTuple):
    """A row group of the prefix: its shard's number, its number there, its first row in the split, rows of the prefix."""

    shard: int
    group: int
    first_row: int
    rows: int


class Window(NamedTuple):
    """Rows of a stream that are shuffled together; `start` is their place in the stream."""

    epoch: int
    stream: int
    number: int
    start: int
    rows: int


class StreamOrder:
    """The order of the first D training spectra."""

    def __init__(self, manifest: Manifest, num_spectra: int, batch_size: int, seed: int) -> None:
        """Of the first `num_spectra` training spectra.

        Raises:
            UserError: The split has fewer.
        """
        shards = manifest.leading_shards("train", num_spectra)
        self.files = [manifest.dest / shard.file for shard in shards]
        self.seed = seed
        self.steps_per_epoch = -(-num_spectra // batch_size)
        self._groups, first_row = [], 0
        for number, shard in enumerate(shards):
            for start in range(0, shard.rows, ROW_GROUP_ROWS):
                rows = min(ROW_GROUP_ROWS, shard.rows - start, num_spectra - first_row - start)
                if rows > 0:
                    self._groups.append(Group(number, start // ROW_GROUP_ROWS, first_row + start, rows))
            first_row += shard.rows
        self._epoch, self._streams = -1, [[[self._groups[0]]]]
        self._rows_epoch, self._rows = -1, [0]

    def _windows(self, epoch: int) -> list[list[list[Group]]]:
        """The row groups of every window of every stream.

        The first window of stream v has v + 1 row groups, so that the streams do not need their next windows all at once.
        """
        if epoch != self._epoch:
            generator = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
            dealt = generator.permutation(len(self._groups))
            self._streams = []
            for stream in range(STREAMS):
                groups = [self._groups[at] for at in dealt[stream::STREAMS]]
                edges = [0, *range(stream + 1, len(groups), WINDOW_GROUPS), len(groups)]
                self._streams.append([groups[a:b] for a, b in itertools.pairwise(edges) if a < b])
            self._epoch = epoch
        return self._streams

    def stream_rows(self, epoch: int) -> list[int]:
        """The number of rows of each stream."""
        if epoch != self._rows_epoch:
            self._rows = [sum(group.rows for window in stream for group in window) for stream in self._windows(epoch)]
            self._rows_epoch = epoch
        return self._rows

    def shares(self, step: int) -> list[tuple[int, int]]:
        """The first row of a step in each stream, and the row after its last."""
        epoch, index = divmod(step, self.steps_per_epoch)
        return [
            (index * rows // self.steps_per_epoch, (index + 1) * rows // self.steps_per_epoch)
            for rows in self.stream_rows(epoch)
        ]

    def window_groups(self, window: Window) -> tuple[list[Group], Int64[ndarray, " row"]]:
        """A window's row groups, and the place in the window of each of their rows, in turn."""
        groups = self._windows(window.epoch)[window.stream][window.number]
        key = [stable_seed("window", self.seed, window.epoch), window.stream << 32 | window.number]
        return groups, np.random.Generator(np.random.Philox(key=key)).permutation(sum(group.rows for group in groups))

    def windows_from(self, step: int, streams: range) -> Iterator[Window]:
        """The windows that some streams need from a step on, in the order they need them; without end."""
        for epoch in itertools.count(step // self.steps_per_epoch):
            first = max(step - epoch * self.steps_per_epoch, 0)
            ahead: list[tuple[int, Window]] = []
            for stream in streams:
                start, total = 0, self.stream_rows(epoch)[stream]
                for number, groups in enumerate(self._windows(epoch)[stream]):
                    rows = sum(group.rows for group in groups)
                    needed = -(-self.steps_per_epoch * (start + 1) // total) - 1  # the step that takes row `start`
                    if start + rows > first * total // self.steps_per_epoch:
                        ahead.append((max(needed, first), Window(epoch, stream, number, start, rows)))
                    start += rows
            yield from (window for _, window in sorted(ahead))

    def rows(self, step: int) -> Int64[ndarray, " row"]:
        """Row numbers of a step's global batch, stream after stream."""
        epoch, parts = step // self.steps_per_epoch, []
        for stream, (start, stop) in enumerate(self.shares(step)):
            order = []
            for number in range(len(self._windows(epoch)[stream])):
                groups, places = self.window_groups(Window(epoch, stream, number, 0, 0))
                numbers = np.concatenate([group.first_row + np.arange(group.rows) for group in groups])
                order.append(numbers[np.argsort(places)])
            parts.append(np.concatenate([*order, np.empty(0, np.int64)])[start:stop])
        return np.concatenate(parts)
