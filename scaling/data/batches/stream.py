"""Training spectra streamed from the shards by threads, for a prefix that does not fit on a node's disk.

The order is a pure function of (seed, epoch), the same for any number of workers, so that the step number is the only
state needed to resume. In each epoch the shards of the prefix are permuted and dealt to ``LANES`` lanes in turn. A lane
shuffles its rows within each shard. Of a lane of n rows, step s of the S steps of an epoch takes rows ⌊s·n/S⌋ to
⌊(s+1)·n/S⌋: every row once an epoch, in batches whose sizes differ by at most ``LANES``. Worker r of k serves lanes r,
r + k, …; if the prefix has fewer shards than lanes, the other lanes are empty.

Memory: two shards per lane, so 16 for all workers together; with 4,096 spectra of 4,096 pixels each this is
1 GiB with fixed noise, 2 GiB with fresh. Mixing: a batch has rows of 8 shards, 32,768 spectra, not of the whole prefix.
In a study order, where neighbours are no more alike than other spectra, nothing is lost. If a source were sorted by its
label, the mean label of a batch of 256 would scatter 4.7 times as much as under a full shuffle (``tests/data/batches``):
convert such a source with ``--order shuffled``, which ``auto`` chooses by itself.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float32, Float64, Int64
from numpy import ndarray
from torch import Tensor

from scaling.data.batches.decode import channels, shard_spectra
from scaling.data.batches.noise import FixedNoise
from scaling.data.batches.rules import read_labels
from scaling.data.batches.worker import Worker
from scaling.data.seeds import stable_seed
from scaling.data.shards.manifest import Manifest
from scaling.errors import UserError

LANES = 8
"""Changing it changes the order of every seed."""
AHEAD = 2
"""Shards held per lane: the current one, and the next, which is decoded in the background."""
GPU_DECODERS, CPU_DECODERS = 4, 1
"""Decoding threads; a CPU trial trains on another core, and more threads would slow it down."""


class Visit(NamedTuple):
    """A shard in a lane of an epoch: its number, offset of its first row in the lane, and its rows in the prefix."""

    epoch: int
    shard: int
    start: int
    rows: int


class StreamOrder:
    """The order of the first D training spectra."""

    def __init__(self, manifest: Manifest, num_spectra: int, batch_size: int, seed: int) -> None:
        """Set up the order of the first ``num_spectra`` training spectra.

        Raises:
            UserError: The split has fewer.
        """
        self.manifest, self.num_spectra, self.seed = manifest, num_spectra, seed
        self.num_shards = len(manifest.leading_shards("train", num_spectra))
        self.steps_per_epoch = -(-num_spectra // batch_size)
        self._epoch, self._lanes = -1, [[Visit(-1, 0, 0, 0)]]

    def lanes(self, epoch: int) -> list[list[Visit]]:
        """The shards of each lane, in visiting order."""
        if epoch != self._epoch:
            order = np.random.Generator(np.random.Philox(key=[self.seed, epoch])).permutation(self.num_shards)
            lanes = [self._visits(epoch, order[lane::LANES].tolist()) for lane in range(LANES)]
            self._epoch, self._lanes = epoch, lanes
        return self._lanes

    def _visits(self, epoch: int, shards: list[int]) -> list[Visit]:
        each, visits, start = self.manifest.rows_per_shard, [], 0
        for shard in shards:
            rows = min(each, self.num_spectra - shard * each)
            visits.append(Visit(epoch, shard, start, rows))
            start += rows
        return visits

    def shuffle(self, visit: Visit) -> Int64[ndarray, " row"]:
        """The order in which the rows of a shard are visited."""
        key = [stable_seed("shard", self.seed, visit.epoch), visit.shard]
        return np.random.Generator(np.random.Philox(key=key)).permutation(visit.rows)

    def shares(self, step: int) -> list[tuple[int, int]]:
        """The half-open range of rows that a step takes from each lane."""
        (epoch, index), steps = divmod(step, self.steps_per_epoch), self.steps_per_epoch
        totals = [lane[-1].start + lane[-1].rows if lane else 0 for lane in self.lanes(epoch)]
        return [(index * rows // steps, (index + 1) * rows // steps) for rows in totals]


class Rows(NamedTuple):
    """Selected rows of a decoded shard: its spectra, the row indices, and the labels in their own units."""

    spectra: Float32[Tensor, "all channel pixel"]
    chosen: Int64[Tensor, " row"]
    labels: Float64[ndarray, "row label"]


class Decoded(NamedTuple):
    """The rows of a shard that are in the prefix: spectra, labels, and the order in which they are visited."""

    spectra: Float32[Tensor, "row channel pixel"]
    labels: Float64[ndarray, "row label"]
    order: Int64[ndarray, " row"]


class SpectrumStream:
    """One worker's share of the steps. Consecutive steps are cheapest; any other order restarts the stream."""

    def __init__(self, order: StreamOrder, labels: tuple[str, ...], noise: FixedNoise | None, worker: Worker) -> None:
        """Start the threads; nothing is decoded before the first step.

        Args:
            order: The order of the prefix.
            labels: The label columns.
            noise: Added when a shard is decoded; None keeps flux and error separate.
            worker: The worker whose share is streamed.

        Raises:
            UserError: There are more workers than lanes.
        """
        if worker.world > LANES:
            raise UserError(
                f"{worker.world} workers of one trial stream spectra: at most {LANES} can; lower Placement.workers"
            )
        self.order, self.lanes = order, range(worker.rank, LANES, worker.world)
        self._settings, self._next_step = (labels, noise), -1
        threads = GPU_DECODERS if worker.device.type == "cuda" else CPU_DECODERS
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="stream")
        self._held: dict[int, deque[tuple[Visit, Future[Decoded]]]] = {}

    def take(self, step: int) -> Iterator[Rows]:
        """This worker's rows of a step's batch, lane by lane.

        Raises:
            UserError: A shard is damaged, or a label in it is not finite.
        """
        epoch, shares = step // self.order.steps_per_epoch, self.order.shares(step)
        if step != self._next_step:
            self._start(epoch, shares)
        self._next_step = step + 1
        for lane in self.lanes:
            start, stop = shares[lane]
            while start < stop:
                visit, decoded = self._held[lane][0]
                shard = decoded.result()
                chosen = shard.order[start - visit.start : stop - visit.start]
                yield Rows(shard.spectra, torch.from_numpy(chosen), shard.labels[chosen])
                start += len(chosen)
                if start == visit.start + visit.rows:
                    del shard, decoded
                    self._held[lane].popleft()
                    self._decode_ahead(lane)

    def close(self) -> None:
        """Stop the threads and release the decoded shards."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._held = {}

    def _start(self, epoch: int, shares: list[tuple[int, int]]) -> None:
        for _, decoded in itertools.chain(*self._held.values()):
            decoded.cancel()
        lanes = [lane for lane in self.lanes if self.order.lanes(epoch)[lane]]
        self._held = {lane: deque() for lane in lanes}
        self._visits = {lane: self._visits_from(epoch, lane, shares[lane][0]) for lane in lanes}
        for _ in range(AHEAD):  # the first shard of every lane before the second of any
            for lane in lanes:
                self._decode_ahead(lane)

    def _visits_from(self, epoch: int, lane: int, row: int) -> Iterator[Visit]:
        """Yield the shards of a lane endlessly, starting at a row of an epoch."""
        yield from (visit for visit in self.order.lanes(epoch)[lane] if visit.start + visit.rows > row)
        for following in itertools.count(epoch + 1):
            yield from self.order.lanes(following)[lane]

    def _decode_ahead(self, lane: int) -> None:
        visit = next(self._visits[lane])
        self._held[lane].append((visit, self._pool.submit(_decode_shard, self.order, visit, *self._settings)))


def _decode_shard(order: StreamOrder, visit: Visit, columns: tuple[str, ...], noise: FixedNoise | None) -> Decoded:
    """Decode a whole shard, even if the prefix needs less, because only then is its checksum verified."""
    manifest, shard = order.manifest, order.manifest.shards("train")[visit.shard]
    spectra, tables, at = np.empty((visit.rows, channels(noise), manifest.pixels), np.float32), [], 0
    for block, params in shard_spectra(manifest, "train", visit.shard, noise):
        here = min(len(block), visit.rows - at)
        spectra[at : at + here] = block[:here]
        tables.append(params.select(columns).slice(0, here))
        at += here
    # Converted once per shard: a thread that creates Python objects blocks the training thread (GIL).
    labels = read_labels(pa.concat_tables(tables).to_pandas(), columns, manifest.folder.locate(shard.file))
    return Decoded(torch.from_numpy(spectra), labels, order.shuffle(visit))
