"""What a study is: frozen declarations of data, sizes, recipe and search. Science is changed here, in code."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from scaling.data.batches import Access, DataRules
from scaling.data.shards.records import Order
from scaling.data.simulated.writer import Simulation
from scaling.errors import UserError
from scaling.files import Location
from scaling.model.ladder import Ladder, Whitening
from scaling.model.specvit import ModelConfig
from scaling.training.recipe import Budget, Recipe

__all__ = [
    "Budget",
    "Cell",
    "Data",
    "DataRules",
    "Ladder",
    "Placement",
    "Recipe",
    "Search",
    "Simulation",
    "Sources",
    "Study",
    "Whitening",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """HDF5 files of a real study, and the shard set made from them once: a local folder, or a URI as a string.

    `order` is the study order of the training spectra: "auto" shuffles them where their order in the files drifts, so
    that the first D are a fair sample of all; "source" keeps it, "shuffled" always shuffles, from `order_seed`.
    """

    shards: Location
    train: tuple[Path, ...]
    val: Path
    test: Path
    order: Order = "auto"
    order_seed: int = 0

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            UserError: naming the field, its value and the remedy.
        """
        if not isinstance(self.train, tuple) or not self.train:
            raise UserError(f"Sources.train = {self.train!r}: give a tuple of one or more files, as (Path('a.h5'),)")
        if not isinstance(self.shards, Path) and not (isinstance(self.shards, str) and "://" in self.shards):
            raise UserError(f"Sources.shards = {self.shards!r}: give a Path, or a URI as a string, as 's3://bucket/x'")
        named = [("val", self.val), ("test", self.test), *(("train", p) for p in self.train)]
        for name, path in named:
            if not isinstance(path, Path):
                raise UserError(f"Sources.{name}: {path!r} is not a pathlib.Path; give Path({str(path)!r})")
        if self.order not in get_args(Order) or self.order_seed < 0:
            allowed = ", ".join(get_args(Order))
            raise UserError(
                f"Sources(order={self.order!r}, order_seed={self.order_seed}): order must be one of {allowed}, the seed 0 or more"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """Where the spectra come from, the rungs of D, and how spectra become inputs.

    `access` says how trials read them: "resident" on the device, "mapped" from the node's cache, or "streamed" from the
    shards, in an order that mixes 8 of them at a time (`scaling.data.batches.stream`). "auto" chooses by size: on a GPU resident
    where the spectra fit into the trial's share, else mapped, and streamed where a node's disk cannot hold them.
    """

    source: Simulation | Sources
    num_spectra: tuple[int, ...]
    rules: DataRules = field(default_factory=DataRules)
    access: Access = "auto"

    def __post_init__(self) -> None:
        """Check the access.

        Raises:
            UserError: it is none of the four.
        """
        if self.access not in get_args(Access):
            raise UserError(f"Data.access = {self.access!r}: must be one of {', '.join(get_args(Access))}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """The search for the learning rate of each cell; at most `trials` are trained (`scaling.sweep.rates`).

    The first is predicted: `reference_lr`·256/width (at most `max_lr`), corrected by a law fitted to the best rates of a few cheap
    cells. The next two are a `factor` below and above it; one more follows where the best lies at the edge, then the lowest
    point of a parabola as long as it promises more than `seed_noise`, the relative scatter of the error between seeds.

    With `prune`, a trial is stopped that is hopeless beside the cell's best (`scaling.sweep.pruning`).
    """

    trials: int = 5
    factor: float = 2.0
    reference_lr: float = 3e-4
    max_lr: float = 1e-2
    seed_noise: float = 0.01
    prune: bool = True

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            UserError: naming the field, its value and the remedy.
        """
        if self.trials < 1:
            raise UserError(f"Search.trials = {self.trials}: must be at least 1")
        if not (self.reference_lr > 0 and self.max_lr > 0):
            raise UserError(f"Search(reference_lr={self.reference_lr}, max_lr={self.max_lr}): both must be positive")
        if not 1 < self.factor <= 100:
            raise UserError(f"Search.factor = {self.factor}: must be more than 1, and at most 100")
        if not 0 <= self.seed_noise < 1:
            raise UserError(f"Search.seed_noise = {self.seed_noise}: must be in [0, 1)")

    def centre(self, width: int) -> float:
        """The learning rate that is expected to be best before anything is measured: inversely proportional to the width."""
        return min(self.max_lr, self.reference_lr * 256 / width)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """What a trial of at least this width and this many spectra occupies. The last placement that applies holds.

    `gpus` can be a fraction: such trials share a device, each in its own process. A trial with several workers, or
    with whole GPUs, runs under Ray Train; with `min_workers` it continues with fewer where a lost one is not replaced.
    `micro_batch` bounds the spectra that a worker takes through the model at a time, `compiled` uses `torch.compile`.
    """

    from_width: int = 0
    from_spectra: int = 0
    workers: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    min_workers: int | None = None
    micro_batch: int | None = None
    compiled: bool = False

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            UserError: naming the field, its value and the remedy.
        """
        if self.min_workers is not None and not 1 <= self.min_workers <= self.workers:
            raise UserError(f"Placement.min_workers = {self.min_workers}: must be in 1 ... workers = {self.workers}")
        if self.micro_batch is not None and self.micro_batch < 1:
            raise UserError(f"Placement.micro_batch = {self.micro_batch}: must be at least 1, or None")
        if self.workers < 1 or self.cpus <= 0 or self.gpus < 0:
            raise UserError(f"{self}: workers and cpus must be positive, gpus 0 or more")
        if (self.workers > 1 or self.gpus > 1) and self.gpus % 1:
            raise UserError(f"{self}: gpus must be whole above 1, and where a trial has several workers")

    @property
    def host(self) -> str:
        """ "ray_train" for whole devices and several workers, "process" for trials that share a device."""
        return "ray_train" if self.workers > 1 or self.gpus >= 1 else "process"

    def describe(self) -> str:
        """What a trial occupies, as "2 × 1 GPU and 6 CPU"."""
        gpus = f"{self.gpus:g} GPU and " if self.gpus else ""
        fewest = f"{self.min_workers} to " if self.min_workers else ""
        return f"{fewest}{self.workers} × {gpus}{self.cpus:g} CPU"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A model size, a number of spectra and a seed: one point of the law, once its learning rate is found."""

    width: int
    num_spectra: int
    seed: int

    @property
    def key(self) -> str:
        """Name of the cell in paths and dashboards. Results are identified by columns, never by parsing this."""
        return f"w{self.width:04d}-d{self.num_spectra:08d}-s{self.seed}"

    def trial(self, number: int) -> str:
        """Name of one trial of the cell."""
        return f"{self.key}-t{number:02d}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A declared set of cells: widths × numbers of spectra × seeds, with the rules they share.

    The first seed's cells are searched for their best learning rate. Further seeds are trained at it, in every cell, or with
    `repeat_every` in every n-th along either axis: their scatter is the noise that a law's misfit is tested against.
    With `hold_out_edge`, the cells of the largest width and of the largest number of spectra are kept out of the fit,
    and the law's forecast of them is scored. `placements` say where trials run; they change results by rounding only,
    except that with dropout each worker draws masks of its own.
    """

    name: str
    question: str
    data: Data
    ladder: Ladder
    widths: tuple[int, ...]
    recipe: Recipe
    search: Search
    seeds: tuple[int, ...] = (42,)
    repeat_every: int = 1
    hold_out_edge: bool = True
    placements: tuple[Placement, ...] = (Placement(),)

    def __post_init__(self) -> None:
        """Check what can be checked without data or a cluster.

        Raises:
            UserError: naming the field, its value and the remedy.
        """
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", self.name):
            raise UserError(f"Study.name = {self.name!r}: use lower-case letters, digits, - and _ (it names a folder)")
        for name, values in (
            ("widths", self.widths),
            ("data.num_spectra", self.data.num_spectra),
            ("seeds", self.seeds),
        ):
            if not values or len(set(values)) != len(values) or tuple(sorted(values)) != tuple(values):
                raise UserError(f"Study.{name} = {values}: give at least one value, in rising order, none twice")
        if self.repeat_every < 1:
            raise UserError(f"Study.repeat_every = {self.repeat_every}: must be at least 1, for further seeds in every cell")
        if self.widths[0] < 1 or self.data.num_spectra[0] < 1:
            raise UserError(f"Study {self.name}: widths and numbers of spectra must be positive")
        if not self.placements or (self.placements[0].from_width, self.placements[0].from_spectra) != (0, 0):
            raise UserError("Study.placements: the first must apply to every cell (from_width 0, from_spectra 0)")
        for width in self.widths:
            self.model(width)
        if self.data.rules.boundary is not None and self.recipe.loss != "l1":
            raise UserError(
                f"Recipe.loss = {self.recipe.loss!r}: with DataRules.boundary it is cross-entropy; leave Recipe.loss out"
            )
        source = self.data.source
        if isinstance(source, Simulation):
            if source.pixels != self.ladder.num_pixels:
                raise UserError(
                    f"Ladder.num_pixels = {self.ladder.num_pixels}: the simulation writes {source.pixels} pixels"
                )
            if source.train < self.data.num_spectra[-1]:
                raise UserError(
                    f"Study.data.num_spectra: {self.data.num_spectra[-1]} spectra asked for, "
                    f"but the simulation writes {source.train}; raise Simulation.train or drop the rung"
                )

    def cells(self) -> tuple[Cell, ...]:
        """All cells, in a fixed order."""
        return tuple(
            Cell(width=width, num_spectra=num_spectra, seed=seed)
            for i, width in enumerate(self.widths)
            for j, num_spectra in enumerate(self.data.num_spectra)
            for seed in (self.seeds if (i + j) % self.repeat_every == 0 else self.seeds[:1])
        )

    def model(self, width: int) -> ModelConfig:
        """The model of a rung, with an output for each label."""
        return self.ladder.rung(width, len(self.data.rules.labels))

    def held_out(self, cell: Cell) -> bool:
        """Whether the cell is kept out of the fit, to score the forecast."""
        edge = cell.width == self.widths[-1] or cell.num_spectra == self.data.num_spectra[-1]
        return self.hold_out_edge and edge

    def placement(self, cell: Cell) -> Placement:
        """Where the trials of a cell run."""
        fitting = [p for p in self.placements if cell.width >= p.from_width and cell.num_spectra >= p.from_spectra]
        return fitting[-1]

    def fingerprint(self, cell: Cell, data_digest: str) -> str:
        """Hash of everything declared that determines the results of a cell, with the digest of its spectra.

        Not part of it: the search (a row says its learning rate), placements, other cells and the title; they may change
        between runs.
        """
        declared = (cell, self.data.rules, self.model(cell.width), self.ladder.whitening, self.recipe)
        parts = [stable(part) for part in declared]
        return hashlib.sha256(json.dumps([*parts, data_digest], sort_keys=True).encode()).hexdigest()[:16]


def stable(value: Any) -> Any:
    """A declaration as plain JSON values, the same in every process.

    Raises:
        TypeError: for a value without a stable form, rather than hashing a memory address.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: stable(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [stable(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(value).__name__} has no stable form")
