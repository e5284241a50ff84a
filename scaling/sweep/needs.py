"""What a study needs of devices and nodes: memory, disk, bytes read; and what cannot fit, with the knob that would make it fit."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from scaling.data.batches.evaluation import EVALUATION_SHARE
from scaling.data.batches.stream import AHEAD, LANES
from scaling.data.batches.training import RESIDENT_SHARE, Access
from scaling.data.shards.manifest import MANIFEST, Manifest
from scaling.data.simulated.writer import Simulation
from scaling.errors import UserError
from scaling.files import size_text
from scaling.folder import Folder
from scaling.model.ladder import count_parameters
from scaling.model.specvit import ModelConfig, SpecViT
from scaling.study.declaration import Placement, Study
from scaling.study.prepare import shards_path
from scaling.study.store import Store
from scaling.sweep.modelled import Cluster
from scaling.sweep.nodes import BYTES, choose_access, maps_bytes
from scaling.training.recipe import HALF

EVALUATION_ROWS = 1024
ROWS_PER_SHARD = 4096
PROCESS = 10**9
"""Bytes of a trial's process before it has spectra or a model: Python, PyTorch and Ray."""
SHARD_RATIO = 1.5
"""By which shards are smaller than their values, as measured on simulated spectra."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """Bytes of a worker's device. Activations and evaluation are estimates: what the allocator adds is not in them.

    `model` is weights, gradients and AdamW's two moments; `activation` is of one spectrum and `rows` of them go through the model
    at a time; `evaluation` is of spectra scored at a time; `held` the validation and test spectra that stay there, where they are
    no large part of it; `resident` the training spectra, where they are held there.
    """

    model: int
    activation: int
    rows: int
    evaluation: int
    held: int
    resident: int

    @property
    def total(self) -> int:
        """All at once, at the worst moment."""
        return self.model + max(self.activation * self.rows, self.evaluation) + self.held + self.resident


def activation_bytes(config: ModelConfig, precision: str, gpu: bool, *, fake: bool = True) -> tuple[int, int]:
    """Bytes that one spectrum's forward pass keeps for its backward pass; and of copies of the weights in 16 bits.

    They are counted on fake tensors, which have shapes and no content, as distinct storages that autograd saves. On a
    CPU the count is exact. For a GPU, whose kernels keep no attention weights, these are left out; the rest is taken to be alike.
    """
    one, two = (_saved_bytes(config, precision, gpu, rows, fake) for rows in (1, 2))
    return two - one, max(0, 2 * one - two)


@functools.lru_cache(maxsize=256)
def _saved_bytes(config: ModelConfig, precision: str, gpu: bool, rows: int, fake: bool) -> int:
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not gpu or tensor.shape[-2:] != (config.num_tokens, config.num_tokens):
            saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with torch.device("meta"):
        model = SpecViT(config)
    mode: Any = FakeTensorMode() if fake else torch.enable_grad()
    with mode:
        named = [*model.named_parameters(), *model.named_buffers()]
        own = {name: torch.zeros(value.shape, requires_grad=value.requires_grad) for name, value in named}
        cast_to = torch.bfloat16 if precision in HALF else None  # fp16 takes as much
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", dtype=cast_to, enabled=cast_to is not None),
        ):
            torch.func.functional_call(model, own, (torch.zeros(rows, config.num_pixels),))
        mine = {value.untyped_storage()._cdata for value in own.values()}
    return sum(storage.nbytes() for key, storage in saved.items() if key not in mine)


def known_shards(study: Study, store: Store | None) -> Manifest:
    """The study's shard set, or as much of one as is known before it is made: of real spectra, no validation and test."""
    source = study.data.source
    if store is not None or not isinstance(source, Simulation):
        folder = Folder.at(shards_path(study, store or Store("")))
        if folder.size(MANIFEST) is not None:
            return Manifest.load(folder.uri)
    rows: Callable[[str], int] = source.rows if isinstance(source, Simulation) else lambda split: 0

    def leading(split: str, count: int) -> list[Any]:
        return [SimpleNamespace(rows=min(-(-count // ROWS_PER_SHARD) * ROWS_PER_SHARD, rows(split) or 2**62))]

    known = SimpleNamespace(
        pixels=study.ladder.num_pixels, num_rows=rows, leading_shards=leading, rows_per_shard=ROWS_PER_SHARD
    )
    return cast(Manifest, known)


def device_needs(study: Study, width: int, place: Placement, spectra: int, manifest: Manifest, memory: int) -> Needs:
    """What a worker of the placement needs for this rung; `memory` is its share of a GPU's in bytes, 0 if it is not known."""
    config, rules, recipe = study.model(width), study.data.rules, study.recipe
    activation, copies = activation_bytes(config, recipe.precision, place.gpus > 0)
    own = -(-recipe.batch_size // place.workers)
    row, arrays = BYTES * manifest.pixels, 1 if rules.noise == "fixed" else 2
    resident = row * arrays * spectra
    splits = [row * manifest.num_rows(split) // place.workers for split in ("val", "test")]
    fits = place.gpus > 0 and resident <= RESIDENT_SHARE * memory
    scored = min(EVALUATION_ROWS, max(manifest.num_rows("val"), manifest.num_rows("test")) or EVALUATION_ROWS)
    count, item = count_parameters(config), 2 if recipe.precision in HALF else 4
    return Needs(
        model=4 * (count.total + 3 * count.reach_loss) + copies,
        activation=activation,
        rows=min(place.micro_batch or own, own),
        evaluation=scored * config.num_tokens * (2 * 4 * config.width + 2 * item * config.mlp_width),
        held=sum(size for size in splits if not memory or size <= EVALUATION_SHARE * memory),
        resident=resident if study.data.access == "resident" or (study.data.access == "auto" and fits) else 0,
    )


def too_large(needs: Needs, memory: int, place: Placement, name: str) -> str:
    """Why a worker does not fit its share of a GPU's memory, with what would make it; empty where it fits."""
    if needs.total <= memory:
        return ""
    base = needs.model + needs.held
    rows = (memory - base) // max(1, needs.activation)
    if needs.resident and needs.total - needs.resident <= memory:
        knob = "Data.access='mapped'"
    elif rows >= 1 and base + needs.evaluation <= memory:
        rows = 2 ** (rows.bit_length() - 1)
        knob = f"Placement.micro_batch={rows}, or Placement.workers={place.workers * -(-needs.rows // rows)} of so many GPUs"
        knob += " and Data.access='mapped'" if needs.resident > memory - base - rows * needs.activation else ""
    else:
        knob = "a larger Placement.gpus" if place.gpus < 1 else "a GPU of more memory, or drop the width"
    return f"{name}: a worker needs {size_text(needs.total)} of a GPU, and its share is {size_text(memory)}: {knob}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeNeeds:
    """Bytes of a node: its memory maps on disk, the largest trial's working set in memory, what is read from the shards.

    `maps` are best in memory too, as page cache. `trials` is how many processes share the node, `memory` theirs together.
    """

    access: dict[int, str]
    maps: int
    memory: int
    trials: int
    filled: int
    streamed: int
    problem: str


def node_needs(
    study: Study, cluster: Cluster, manifest: Manifest, needs: dict[Placement, Needs], limit: int | None
) -> NodeNeeds:
    """What each node needs; of placements, the one that takes most memory.

    `filled` are read once to fill the maps, `streamed` by each trial of the largest streamed number of spectra, compressed.
    """
    problem = ""
    try:
        access: dict[int, Access] = choose_access(study, manifest, [], limit)
    except UserError as error:
        problem, access = str(error).removeprefix("node : "), dict.fromkeys(study.data.num_spectra, study.data.access)
    row, arrays = BYTES * manifest.pixels, 1 if study.data.rules.noise == "fixed" else 2
    maps = maps_bytes(study, manifest, access)
    streams = [number for number, how in access.items() if how == "streamed"]
    buffers = LANES * AHEAD * manifest.rows_per_shard * row * arrays if streams else 0
    memory, trials = 0, 0
    for place, need in needs.items():
        fitting = [there / each for there, each in ((cluster.cpus, place.cpus), (cluster.gpus, place.gpus)) if each]
        side_by_side = max(1, int(min(fitting) + 1e-9))
        each = PROCESS + buffers // place.workers + (0 if place.gpus else need.total)
        if side_by_side * each > memory:
            memory, trials = side_by_side * each, side_by_side
    evaluation = manifest.num_rows("val") + manifest.num_rows("test")
    mapped = [number for number in access if number not in streams]
    filled = 2 * row * (max(mapped, default=0) + evaluation) / SHARD_RATIO
    recipe = study.recipe
    seen = max((recipe.budget.steps(number, recipe.batch_size) * recipe.batch_size for number in streams), default=0)
    return NodeNeeds(
        access=dict(access),
        maps=maps,
        memory=memory,
        trials=trials,
        filled=int(filled),
        streamed=int(2 * row * seen / SHARD_RATIO),
        problem=problem,
    )
