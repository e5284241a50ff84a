"""Memory, disk and reads that a study needs of devices and nodes; what does not fit, and the setting to change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any, cast

from scaling.data.batches.evaluation import EVALUATION_SHARE
from scaling.data.batches.stream import AHEAD, LANES
from scaling.data.batches.training import Access
from scaling.data.shards.manifest import MANIFEST, Manifest
from scaling.data.simulated.writer import Simulation
from scaling.errors import UserError
from scaling.files import size_text
from scaling.folder import Folder
from scaling.study.declaration import Placement, Study
from scaling.study.prepare import shards_path
from scaling.study.store import Store
from scaling.sweep.modelled import Cluster
from scaling.sweep.nodes import BYTES, choose_access, maps_bytes
from scaling.training.memory import StepBytes, step_bytes

ROWS_PER_SHARD = 4096
PROCESS = 10**9
"""Memory in bytes of a trial's process without spectra or model: Python, PyTorch and Ray."""
SHARD_RATIO = 1.5
"""Compression ratio of shards, as measured on simulated spectra."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs(StepBytes):
    """Memory of a worker's device in bytes, excluding the allocator's overhead.

    `held` are the validation and test spectra kept there, if they are small enough; `resident` the training spectra,
    if they are held there.
    """

    held: int
    resident: int

    @property
    def total(self) -> int:
        """Peak memory, everything included."""
        return self.step + self.held + self.resident


def known_shards(study: Study, store: Store | None) -> Manifest:
    """The study's shard set, or what is known of it before it exists (for real spectra only the training split)."""
    source = study.data.source
    if store is not None or not isinstance(source, Simulation):
        folder = Folder.at(shards_path(study, store or Store("")))
        if folder.size(MANIFEST) is not None:
            return Manifest.read(folder.uri)
    rows: Callable[[str], int] = source.rows if isinstance(source, Simulation) else lambda split: 0

    def leading(split: str, count: int) -> list[Any]:
        return [SimpleNamespace(rows=min(-(-count // ROWS_PER_SHARD) * ROWS_PER_SHARD, rows(split) or 2**62))]

    known = SimpleNamespace(
        pixels=study.ladder.num_pixels, num_rows=rows, leading_shards=leading, rows_per_shard=ROWS_PER_SHARD
    )
    return cast(Manifest, known)


def device_needs(study: Study, width: int, place: Placement, spectra: int, manifest: Manifest, memory: int) -> Needs:
    """A worker's device memory for this rung; `memory` is its share of a GPU's in bytes, 0 if unknown."""
    own = min(place.micro_batch or study.recipe.batch_size, -(-study.recipe.batch_size // place.workers))
    scored = max(manifest.num_rows("val"), manifest.num_rows("test"))
    step = step_bytes(study.model(width), study.recipe.precision, own, gpu=place.gpus > 0, scored=scored or None)
    row, arrays = BYTES * manifest.pixels, 1 if study.data.rules.noise == "fixed" else 2
    splits = [row * manifest.num_rows(split) // place.workers for split in ("val", "test")]
    held = sum(size for size in splits if not memory or size <= EVALUATION_SHARE * memory)
    resident, access = row * arrays * spectra, study.data.access
    fits = place.gpus > 0 and resident <= memory - step.reserved
    return Needs(
        **asdict(step), held=held, resident=resident if access == "resident" or (access == "auto" and fits) else 0
    )


def too_large(needs: Needs, memory: int, place: Placement, name: str) -> str:
    """Why a worker does not fit its share of a GPU's memory, and the remedy; empty if it fits."""
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
    """Requirements of a node in bytes: memory maps on disk, working set of the largest trial, reads from shards.

    `maps` should also fit in memory, as page cache. `trials` is the number of processes on the node, `memory` their total.
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
    """Requirements of each node, for the placement that takes the most memory.

    `filled` is read once to fill the maps, `streamed` by each trial of the largest streamed number of spectra; compressed sizes.
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
