"""Batches of the first D training spectra on the device, read from resident, mapped or streamed spectra."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy import ndarray
from torch import Tensor

from scaling.data.batches.cache import map_split
from scaling.data.batches.decode import channels
from scaling.data.batches.gather import ReadAhead, Staging, to_device
from scaling.data.batches.noise import FixedNoise, add_noise_
from scaling.data.batches.rules import READ_ROWS, DataRules, Standardisation, read_labels
from scaling.data.batches.stream import SpectrumStream, StreamOrder
from scaling.data.batches.worker import Worker
from scaling.data.seeds import stable_seed
from scaling.data.shards.manifest import Manifest
from scaling.errors import UserError
from scaling.files import Location

Access = Literal["auto", "resident", "mapped", "streamed"]


class _Share(NamedTuple):
    """A worker's rows of a global batch of ``global_rows``, on the device, and their positions in it."""

    spectra: Float[Tensor, "row channel pixel"]
    labels: Float[Tensor, "row label"]
    places: slice | Tensor
    global_rows: int


class TrainingBatches(ABC):
    """Batches of the first D training spectra, a pure function of the step number.

    The global batch does not depend on the number of workers, so the step is the only state needed to resume. `access`
    says where the spectra are held; it is never "auto".
    """

    access: Access

    def __init__(
        self,
        shards: Location,
        rules: DataRules,
        num_spectra: int,
        batch_size: int,
        seed: int,
        worker: Worker,
        access: Access,
    ) -> None:
        """See `training_batches`."""
        self.rules, self.num_spectra, self.batch_size = rules, num_spectra, batch_size
        self.seed, self.worker = seed, worker
        self.steps_per_epoch = -(-num_spectra // batch_size)
        self._noise = FixedNoise(rules.noise_seed, rules.noise_level) if rules.noise == "fixed" else None
        self._standardisation = Standardisation.of(shards, rules)
        self._standardise = self._standardisation.flux_on(worker.device)
        self._open(shards, access)

    def batch(self, step: int) -> tuple[Float[Tensor, "batch pixel"], Float[Tensor, "batch label"]]:
        """This worker's share of a step's global batch: standardised noisy flux and normalised labels, on the device.

        The share is empty where the global batch has fewer rows than there are workers.

        Raises:
            UserError: A shard is damaged.
        """
        share = self._share(step)
        flux = share.spectra[:, 0]
        if self._noise is None:
            # Every worker draws the noise of the whole global batch, so that it does not depend on their number.
            generator = torch.Generator(self.worker.device).manual_seed(stable_seed("fresh", self.seed, step))
            shape = share.global_rows, flux.shape[1]
            noise = torch.randn(shape, generator=generator, device=self.worker.device)[share.places]
            flux = add_noise_(flux, share.spectra[:, 1], noise, self.rules.noise_level).contiguous()
        return self._standardise(flux), share.labels

    @abstractmethod
    def global_rows(self, step: int) -> int:
        """The number of rows in a step's global batch."""

    @abstractmethod
    def close(self) -> None:
        """Release the spectra. No batch can be read afterwards."""

    @abstractmethod
    def _open(self, shards: Location, access: Access) -> None:
        """Prepare for `_share`."""

    @abstractmethod
    def _share(self, step: int) -> _Share:
        """This worker's rows of a step, before noise."""

    def _normalised(self, labels: Float[ndarray, "row label"]) -> Float[Tensor, "row label"]:
        return to_device(torch.from_numpy(self._standardisation.normalise_labels(labels)), self.worker.device)


def training_batches(
    shards: Location,
    rules: DataRules,
    num_spectra: int,
    batch_size: int,
    *,
    seed: int,
    worker: Worker,
    access: Access = "auto",
) -> TrainingBatches:
    """Open the first `num_spectra` training spectra.

    Args:
        shards: The shard set.
        rules: How spectra become inputs and targets.
        num_spectra: Length of the prefix.
        batch_size: Rows of a global batch; the last of an epoch has fewer, and streamed batches up to 8 fewer or more.
        seed: Seed of the order and of fresh noise.
        worker: The worker that reads the batches.
        access: Where the spectra are held. "auto" copies them to a GPU if they fit beside the trial, and maps them
            otherwise; the batches are the same. "streamed" decodes shards as they are needed, for data that do not fit
            on the node, in an order shuffled within shards (see `stream`).

    Raises:
        UserError: The prefix is too long, a label is not finite, a shard is damaged, the cache has no space, or spectra
            that must be resident do not fit on the device.
    """
    kind = StreamedBatches if access == "streamed" else MappedBatches
    return kind(shards, rules, num_spectra, batch_size, seed, worker, access)


class MappedBatches(TrainingBatches):
    """Rows gathered from the node's memory map, or from a copy of it on the device, in fully shuffled order.

    The order of an epoch is a permutation by (seed, epoch); a global batch is a range of it, of which worker r of k takes
    rows r, r + k, …
    """

    def _open(self, shards: Location, access: Access) -> None:
        worker, labels = self.worker, self.rules.labels
        self._mapped = map_split(shards, "train", self.num_spectra, worker.cache_root, noise=self._noise)
        where = f"{shards}, first {self.num_spectra} training spectra"
        self._labels = self._normalised(read_labels(self._mapped.params(list(labels)), labels, where))
        spectra = self._mapped.spectra
        self.access = "resident" if _goes_to_device(spectra.nbytes, worker, access) else "mapped"
        resident = self.access == "resident"
        self._spectra = _copy(spectra, worker.device) if resident else torch.from_numpy(spectra)
        rows = 0 if resident else -(-self.batch_size // worker.world)  # size of the pinned buffers
        self._staging = Staging(rows, channels(self._noise), spectra.shape[2], worker.device)
        self._read_ahead = ReadAhead(spectra)
        self._epoch, self._order, self._order_there = -1, np.empty(0, np.int64), torch.empty(0)

    def rows(self, step: int) -> Int64[ndarray, " row"]:
        """Row numbers of the global batch of a step, in order."""
        epoch, index = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            generator = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
            self._epoch, self._order = epoch, generator.permutation(self.num_spectra)
            self._order_there = to_device(torch.from_numpy(self._order), self.worker.device)
        return self._order[index * self.batch_size : (index + 1) * self.batch_size]

    def global_rows(self, step: int) -> int:
        """The number of rows in a step's global batch."""
        return len(self.rows(step))

    def close(self) -> None:
        """Release the memory map and the copy on the device."""
        del self._spectra, self._staging, self._read_ahead
        self._mapped.close()

    def _share(self, step: int) -> _Share:
        rows, places = self.rows(step), slice(self.worker.rank, None, self.worker.world)
        first = step % self.steps_per_epoch * self.batch_size
        there = self._order_there[first : first + self.batch_size][places]
        if self.access == "resident":
            spectra = self._spectra.index_select(0, there)
        else:
            with self._read_ahead.watch():
                mine = torch.from_numpy(rows[places].copy())
                spectra = self._staging.gather([(self._spectra, mine)], len(mine))
            if self._read_ahead.useful and (step + 1) % self.steps_per_epoch:
                self._read_ahead.ask_for(self.rows(step + 1)[places])
        return _Share(spectra, self._labels.index_select(0, there), places, len(rows))


class StreamedBatches(TrainingBatches):
    """Rows of shards that are decoded on demand, in the order of `StreamOrder`."""

    access: Access = "streamed"

    def _open(self, shards: Location, access: Access) -> None:
        manifest = Manifest.load(shards)
        self.order = StreamOrder(manifest, self.num_spectra, self.batch_size, self.seed)
        self._stream = SpectrumStream(self.order, self.rules.labels, self._noise, self.worker)
        rows = min(self.batch_size, self.num_spectra) + len(self._stream.lanes)
        self._staging = Staging(rows, channels(self._noise), manifest.pixels, self.worker.device)

    def global_rows(self, step: int) -> int:
        """The number of rows in a step's global batch."""
        return sum(stop - start for start, stop in self.order.shares(step))

    def close(self) -> None:
        """Stop decoding."""
        self._stream.close()

    def _share(self, step: int) -> _Share:
        edges = np.cumsum([0] + [stop - start for start, stop in self.order.shares(step)])
        places = np.concatenate([np.arange(edges[lane], edges[lane + 1]) for lane in self._stream.lanes])
        labels = [np.empty((0, len(self.rules.labels)))]

        def parts() -> Iterator[tuple[Tensor, Tensor]]:
            for rows in self._stream.take(step):  # lazily, so that no more shards are held than the stream has decoded
                labels.append(rows.labels)
                yield rows.spectra, rows.chosen

        spectra = self._staging.gather(parts(), len(places))
        there = to_device(torch.from_numpy(places), self.worker.device)
        return _Share(spectra, self._normalised(np.concatenate(labels)), there, int(edges[-1]))


def _goes_to_device(num_bytes: int, worker: Worker, access: Access) -> bool:
    """Whether all spectra of a prefix are held on the device.

    Raises:
        UserError: They must be resident, but do not fit.
    """
    if worker.device.type != "cuda":
        return access == "resident"
    room = worker.room()
    if access == "resident" and num_bytes > room:
        raise UserError(
            f"access='resident': the spectra take {num_bytes / 1e9:.1f} GB, and {max(0, room) / 1e9:.1f} GB of {worker.device} are free "
            "for them beside the model; use access='auto'"
        )
    return access != "mapped" and num_bytes <= room


def _copy(spectra: Float[ndarray, "row channel pixel"], device: torch.device) -> Float[Tensor, "row channel pixel"]:
    """Copy spectra to the device through a bounded buffer."""
    resident = torch.empty(spectra.shape, dtype=torch.float32, device=device)
    for start in range(0, len(spectra), READ_ROWS):
        resident[start : start + READ_ROWS] = torch.from_numpy(spectra[start : start + READ_ROWS])
    return resident
