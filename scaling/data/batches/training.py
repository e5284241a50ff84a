"""Batches of the first D training spectra on the device, from where they are held: resident, mapped or streamed."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy import ndarray
from torch import Tensor

from scaling.data.batches.cache import map_split
from scaling.data.batches.gather import ReadAhead, Staging
from scaling.data.batches.noise import FixedNoise
from scaling.data.batches.rules import READ_ROWS, DataRules, Standardisation, read_labels
from scaling.data.batches.stream import SpectrumStream
from scaling.data.batches.stream_order import StreamOrder
from scaling.data.seeds import stable_seed
from scaling.data.shards.manifest import Manifest
from scaling.errors import UserError

Access = Literal["auto", "resident", "mapped", "streamed"]
RESIDENT_SHARE = 0.5
"""Of the device's free memory, and of the trial's share of all of it, that spectra may take; the rest is the model's."""
GPU_READERS, CPU_READERS = 4, 2


@runtime_checkable
class TrainingBatches(Protocol):
    """Batches of the first D training spectra, a pure function of the step number.

    The global batch does not depend on the number of workers, so the step is all there is to resume from. `access` says
    where the spectra are held; it is never "auto".
    """

    steps_per_epoch: int
    access: Access

    def batch(self, step: int) -> tuple[Float[Tensor, "batch pixel"], Float[Tensor, "batch label"]]:
        """This worker's share of a step's global batch: standardised noisy flux and normalised labels, on the device.

        The share can be empty, where the global batch has fewer rows than there are workers.

        Raises:
            UserError: A shard is damaged.
        """

    def global_rows(self, step: int) -> int:
        """The number of rows in a step's global batch."""

    def close(self) -> None:
        """Give up what the spectra are held in. No batch can be had after it."""


def training_batches(
    shards: Path,
    rules: DataRules,
    num_spectra: int,
    batch_size: int,
    *,
    seed: int,
    device: torch.device,
    cache_root: Path,
    rank: int = 0,
    world: int = 1,
    access: Access = "auto",
    device_share: float = 1.0,
) -> TrainingBatches:
    """Open the first `num_spectra` training spectra.

    Args:
        shards: The shard set.
        rules: How spectra become inputs and targets.
        num_spectra: The prefix.
        batch_size: Rows of a global batch; fewer in the last of an epoch, or up to 8 fewer or more if streamed.
        seed: Of the order and of fresh noise.
        device: Where batches go.
        cache_root: The node's memory maps.
        rank: This worker's number.
        world: The number of workers.
        access: Where the spectra are held: "resident" on the device, "mapped" from the node's cache, "streamed" from the
            shards by Ray tasks. "auto" is resident on a GPU whose trial's share can hold them, else mapped. Resident
            and mapped give the same batches; streamed ones have another order, so workers and attempts must agree.
        device_share: The fraction of the device that this trial may take.

    Raises:
        UserError: There are fewer spectra, a shard is damaged, the disk or the device has no room, or Ray is not there.
    """
    if access == "streamed":
        return StreamedBatches(shards, rules, num_spectra, batch_size, seed, device, rank, world)
    return MappedBatches(
        shards, rules, num_spectra, batch_size, seed, device, cache_root, rank, world, access, device_share
    )


class MappedBatches:
    """Rows gathered from the node's memory map, or from a copy of it on the device.

    The order of epoch e is a permutation drawn from (seed, e); worker `rank` of `world` takes every world-th row of each
    global batch.
    """

    def __init__(
        self,
        shards: Path,
        rules: DataRules,
        num_spectra: int,
        batch_size: int,
        seed: int,
        device: torch.device,
        cache_root: Path,
        rank: int,
        world: int,
        access: Access,
        device_share: float,
    ) -> None:
        self.num_spectra, self.batch_size, self.seed = num_spectra, batch_size, seed
        self.rank, self.world, self.device = rank, world, device
        self.steps_per_epoch = -(-num_spectra // batch_size)
        self._inputs = _Inputs(shards, rules, seed, device)
        noise = fixed_noise(rules)
        self._mapped = map_split(shards, "train", num_spectra, cache_root, noise=noise)
        params, where = self._mapped.params(list(rules.labels)), f"{shards}, first {num_spectra} training spectra"
        labels = read_labels(params, rules.labels, where)
        self._labels = self._inputs.labels(labels)
        maps = (self._mapped.noisy,) if noise else (self._mapped.flux, self._mapped.error)
        arrays = [array for array in maps if array is not None]
        self.resident = _goes_to_device(sum(array.nbytes for array in arrays), device, access, device_share)
        self.access: Access = "resident" if self.resident else "mapped"
        self._arrays = [_copy(array, device) if self.resident else torch.from_numpy(array) for array in arrays]
        rows = -(-batch_size // world)
        self._staged = [Staging(rows, array.shape[1], device) for array in self._arrays] if not self.resident else []
        self._read_ahead = ReadAhead(arrays)
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def rows(self, step: int) -> Int64[ndarray, " row"]:
        """Row numbers of the global batch of a step, in order."""
        epoch, index = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            generator = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
            self._epoch, self._order = epoch, generator.permutation(self.num_spectra)
        return self._order[index * self.batch_size : (index + 1) * self.batch_size]

    def global_rows(self, step: int) -> int:
        """The number of rows in a step's global batch."""
        return len(self.rows(step))

    def batch(self, step: int) -> tuple[Float[Tensor, "batch pixel"], Float[Tensor, "batch label"]]:
        """This worker's share of a step's global batch."""
        rows = self.rows(step)
        mine = torch.from_numpy(rows[self.rank :: self.world].copy())
        # From page-locked memory, or the copy would wait for all that the GPU has to do.
        there = (mine.pin_memory() if self.device.type == "cuda" else mine).to(self.device, non_blocking=True)
        if self.resident:
            flux, *error = (array.index_select(0, there) for array in self._arrays)
        else:
            with self._read_ahead.watch():
                flux, *error = (
                    staging.gather(array, mine) for staging, array in zip(self._staged, self._arrays, strict=True)
                )
            if self._read_ahead.useful and (step + 1) % self.steps_per_epoch:
                self._read_ahead.ask_for(self.rows(step + 1)[self.rank :: self.world])
        draw = _Draw(step, len(rows), slice(self.rank, None, self.world))
        return self._inputs(draw, flux, *error), self._labels.index_select(0, there)

    def close(self) -> None:
        """Let go of the memory map."""
        self._arrays, self._staged = [], []
        del self._read_ahead
        self._mapped.close()


class StreamedBatches:
    """Rows read from the shards as they are needed, in the order of `StreamOrder`."""

    access: Access = "streamed"

    def __init__(
        self,
        shards: Path,
        rules: DataRules,
        num_spectra: int,
        batch_size: int,
        seed: int,
        device: torch.device,
        rank: int,
        world: int,
    ) -> None:
        manifest = Manifest.load(shards)
        self.order = StreamOrder(manifest, num_spectra, batch_size, seed)
        self.steps_per_epoch = self.order.steps_per_epoch
        self._inputs = _Inputs(shards, rules, seed, device)
        self._stream = SpectrumStream(
            manifest,
            self.order,
            labels=rules.labels,
            noise=fixed_noise(rules),
            rank=rank,
            world=world,
            readers=GPU_READERS if device.type == "cuda" else CPU_READERS,
        )
        self._no_labels = np.empty((0, len(rules.labels)))
        rows = batch_size + len(self._stream.streams)
        self._flux, self._error = (Staging(rows, manifest.pixels, device) for _ in range(2))

    def global_rows(self, step: int) -> int:
        """The number of rows in a step's global batch."""
        return sum(stop - start for start, stop in self.order.shares(step))

    def batch(self, step: int) -> tuple[Float[Tensor, "batch pixel"], Float[Tensor, "batch label"]]:
        """This worker's share of a step's global batch."""
        pieces = self._stream.take(step)
        flux = self._flux.join([piece.flux for piece in pieces])
        error = [piece.error for piece in pieces if piece.error is not None]
        labels = self._inputs.labels(np.concatenate([self._no_labels, *(piece.labels for piece in pieces)]))
        if not error:
            return self._inputs(None, flux), labels
        edges = np.cumsum([0] + [stop - start for start, stop in self.order.shares(step)])
        places = torch.cat([torch.arange(edges[stream], edges[stream + 1]) for stream in self._stream.streams])
        draw = _Draw(step, int(edges[-1]), places)
        return self._inputs(draw, flux, self._error.join(error)), labels

    def close(self) -> None:
        """Stop reading."""
        self._stream.close()


def fixed_noise(rules: DataRules) -> FixedNoise | None:
    """The noise that each spectrum has once and for all; None where it is drawn anew at every visit."""
    return FixedNoise(rules.noise_seed, rules.noise_level) if rules.noise == "fixed" else None


class _Draw(NamedTuple):
    """Which of a step's fresh noise a worker needs: that of these places in a global batch of so many rows."""

    step: int
    global_rows: int
    places: slice | Tensor


class _Inputs:
    """Turns rows on the device into what the model sees."""

    def __init__(self, shards: Path, rules: DataRules, seed: int, device: torch.device) -> None:
        self.rules, self.seed, self.device = rules, seed, device
        self._standardisation = Standardisation.of(shards, rules)
        self._offset = torch.from_numpy(self._standardisation.flux_offset).to(device)
        self._scale = torch.from_numpy(self._standardisation.flux_scale).to(device)

    def labels(self, labels: Float[ndarray, "row label"]) -> Float[Tensor, "row label"]:
        """Normalised labels on the device."""
        return torch.from_numpy(self._standardisation.normalise_labels(labels)).to(self.device)

    def __call__(
        self,
        draw: _Draw | None,
        flux: Float[Tensor, "row pixel"],
        error: Float[Tensor, "row pixel"] | None = None,
    ) -> Float[Tensor, "row pixel"]:
        """Standardised flux, in its place; with an error, after fresh noise."""
        if error is not None and draw is not None:
            # The noise of the whole global batch is drawn everywhere, so that it does not depend on the workers.
            generator = torch.Generator(self.device).manual_seed(stable_seed("fresh", self.seed, draw.step))
            noise = torch.randn(draw.global_rows, flux.shape[1], generator=generator, device=self.device)
            flux = flux.clamp(min=0.0).addcmul(noise[draw.places], error, value=self.rules.noise_level)
        return flux.sub_(self._offset).div_(self._scale)


def _goes_to_device(num_bytes: int, device: torch.device, access: Access, device_share: float) -> bool:
    """Whether all arrays of a prefix are held on the device.

    Raises:
        UserError: They must be, and do not fit.
    """
    if device.type != "cuda":
        return access == "resident"
    free, total = torch.cuda.mem_get_info(device)
    if access == "resident" and num_bytes > free:
        raise UserError(
            f"access='resident': the spectra take {num_bytes / 1e9:.1f} GB, and {free / 1e9:.1f} GB of {device} are free; "
            "use access='auto'"
        )
    return access == "resident" or (access == "auto" and num_bytes <= RESIDENT_SHARE * min(free, device_share * total))


def _copy(array: Float[ndarray, "row pixel"], device: torch.device) -> Float[Tensor, "row pixel"]:
    """An array on the device, through a bounded buffer."""
    resident = torch.empty(array.shape, dtype=torch.float32, device=device)
    for start in range(0, len(array), READ_ROWS):
        resident[start : start + READ_ROWS] = torch.from_numpy(array[start : start + READ_ROWS])
    return resident
