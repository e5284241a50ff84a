"""Study declarations: frozen dataclasses for data, sizes, recipe and search. The science is changed here, in code."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from scaling.baselines import Baseline, LightGBM, Ridge
from scaling.data.batches import Access, DataRules
from scaling.data.shards.records import Order
from scaling.data.simulated.writer import Simulation
from scaling.errors import UserError
from scaling.files import Location, require_no_password
from scaling.model.ladder import Ladder, Whitening
from scaling.model.specvit import ModelConfig
from scaling.parse import Count, Fraction, Name, Natural, Positive, declared
from scaling.study.placement import Placement
from scaling.training.recipe import Budget, Recipe

__all__ = [
    "BaselineCell",
    "Budget",
    "Cell",
    "Data",
    "DataRules",
    "ExpectedLaw",
    "Ladder",
    "LightGBM",
    "Placement",
    "Recipe",
    "Ridge",
    "Search",
    "Simulation",
    "Sources",
    "Study",
    "Whitening",
]


@declared
class Sources:
    """HDF5 files of a real study, and the shard set built from them: a local folder, or a URI as a string.

    `order` is the study order of the training spectra: "auto" shuffles them if their order in the files drifts, so
    that the first D are a fair sample of all; "source" keeps it, "shuffled" always shuffles, from `order_seed`.
    """

    shards: Location
    train: Annotated[tuple[Path, ...], Field(min_length=1)]
    val: Path
    test: Path
    order: Order = "auto"
    order_seed: Natural = 0

    def __post_init__(self) -> None:
        require_no_password(str(self.shards), "Sources.shards =")
        if isinstance(self.shards, str) and "://" not in self.shards:
            raise UserError(f"Sources.shards = {self.shards!r}: give a Path, or a URI as a string, as 's3://bucket/x'")


@declared
class Data:
    """The source of the spectra, the rungs of D, and how spectra become inputs.

    `access` says how trials read them: "resident" on the device, "mapped" from the node's cache, or "streamed" from the
    shards, in an order that mixes 8 of them at a time (`scaling.data.batches.stream`). "auto" chooses by size: resident on a
    GPU if the spectra fit into the trial's share, otherwise mapped, and streamed if they do not fit on a node's disk.
    """

    source: Simulation | Sources
    num_spectra: tuple[Count, ...]
    rules: DataRules = field(default_factory=DataRules)
    access: Access = "auto"


@declared
class Search:
    """The search for each cell's learning rate, with at most `trials` training runs (`scaling.sweep.rates`).

    The first rate is predicted: `reference_lr`·256/width (at most `max_lr`), corrected by a law fitted to the best rates of a
    few cheap cells. The next two are a `factor` below and above it. One more follows if the best is at the edge, then minima
    of a parabola while the predicted gain exceeds `seed_noise`, the relative scatter of the error between seeds.

    With `prune`, trials that are hopeless compared with the cell's best are stopped (`scaling.training.pruning`).
    """

    trials: Count = 5
    factor: Annotated[float, Field(gt=1)] = 2.0
    reference_lr: Positive = 3e-4
    max_lr: Positive = 1e-2
    seed_noise: Fraction = 0.01
    prune: bool = True

    def centre(self, width: int) -> float:
        """The a-priori best learning rate, inversely proportional to the width."""
        return min(self.max_lr, self.reference_lr * 256 / width)


@declared
class ExpectedLaw:
    """The error, in dex, that `scaling plan` assumes: floor + a/N^alpha + b/D^beta, times e^(scatter · normal) per run.

    N counts parameters, D spectra. It is used only to choose the rates tried in a simulated search, and to predict how a
    smaller grid changes a forecast's interval.
    """

    floor: Annotated[float, Field(ge=0)] = 0.05
    a: Positive = 10.0
    alpha: Positive = 0.4
    b: Positive = 5.0
    beta: Positive = 0.4
    scatter: Fraction = 0.01

    def error(self, num_params: int, num_spectra: int) -> float:
        """The mean error of runs of this size."""
        return self.floor + self.a * num_params**-self.alpha + self.b * num_spectra**-self.beta

    def describe(self) -> str:
        """The law as text."""
        law = f"{self.floor:g} + {self.a:g}/N^{self.alpha:g} + {self.b:g}/D^{self.beta:g}"
        return f"{law} dex, scatter {self.scatter:.1%}"


@declared
class Cell:
    """A model size, a number of spectra and a seed: one data point of the law, once its learning rate is found."""

    width: Count
    num_spectra: Count
    seed: Natural

    @property
    def key(self) -> str:
        """Name of the cell in paths and dashboards. Results are identified by columns, never by parsing this."""
        return f"w{self.width:04d}-d{self.num_spectra:08d}-s{self.seed}"

    def trial(self, number: int) -> str:
        """Name of one trial of the cell."""
        return f"{self.key}-t{number:02d}"


@declared
class BaselineCell:
    """A baseline fitted to a number of spectra; the seed is for its random choices."""

    family: Name
    num_spectra: Count
    seed: Natural

    @property
    def key(self) -> str:
        """Name of the cell in paths. Results are identified by columns, never by parsing this."""
        return f"{self.family}-d{self.num_spectra:08d}-s{self.seed}"

    def trial(self, number: int) -> str:
        """Name of its only trial."""
        return f"{self.key}-t{number:02d}"


@declared
class Study:
    """A declared set of cells: widths × numbers of spectra × seeds, with the rules they share.

    The first seed's cells are searched for their best learning rate. Further seeds are trained at that rate, in every cell or,
    with `repeat_every`, in every n-th along either axis; their scatter is the noise against which a law's misfit is tested.
    With `hold_out_edge`, the cells of the largest width and of the largest number of spectra are excluded from the fit,
    and the law's forecast of them is scored. `placements` say where trials run; they change results by rounding only,
    except that with dropout each worker draws its own masks. `expected` is the law that the plan assumes. `baselines` are
    fitted to each number of spectra with the first seed, on CPUs that the trials leave free.
    """

    name: Name
    question: str
    data: Data
    ladder: Ladder
    widths: tuple[Count, ...]
    recipe: Recipe
    search: Search
    seeds: tuple[Natural, ...] = (42,)
    repeat_every: Count = 1
    hold_out_edge: bool = True
    placements: tuple[Placement, ...] = (Placement(),)
    baselines: tuple[Ridge | LightGBM, ...] = ()
    expected: ExpectedLaw = field(default_factory=ExpectedLaw)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", self.name):
            raise UserError(f"Study.name = {self.name!r}: use lower-case letters, digits, - and _ (it names a folder)")
        for name, values in (
            ("widths", self.widths),
            ("data.num_spectra", self.data.num_spectra),
            ("seeds", self.seeds),
        ):
            if not values or len(set(values)) != len(values) or tuple(sorted(values)) != tuple(values):
                raise UserError(f"Study.{name} = {values}: give at least one value, in rising order, none twice")
        if not self.placements or (self.placements[0].from_width, self.placements[0].from_spectra) != (0, 0):
            raise UserError("Study.placements: the first must apply to every cell (from_width 0, from_spectra 0)")
        families = [baseline.family for baseline in self.baselines]
        if len(set(families)) < len(families):
            raise UserError(f"Study.baselines: {', '.join(families)}: give each family once")
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

    def baseline_cells(self) -> tuple[BaselineCell, ...]:
        """The cells of all baselines, in a fixed order."""
        return tuple(
            BaselineCell(family=baseline.family, num_spectra=num_spectra, seed=self.seeds[0])
            for baseline in self.baselines
            for num_spectra in self.data.num_spectra
        )

    def model(self, width: int) -> ModelConfig:
        """The model of a rung, with one output per label."""
        return self.ladder.rung(width, len(self.data.rules.labels))

    def held_out(self, cell: Cell) -> bool:
        """Whether the cell is excluded from the fit, to score the forecast."""
        edge = cell.width == self.widths[-1] or cell.num_spectra == self.data.num_spectra[-1]
        return self.hold_out_edge and edge

    def placement(self, cell: Cell) -> Placement:
        """Where the trials of a cell run."""
        fitting = [p for p in self.placements if cell.width >= p.from_width and cell.num_spectra >= p.from_spectra]
        return fitting[-1]

    def fingerprint(self, cell: Cell | BaselineCell, data_digest: str) -> str:
        """Hash of all declared settings that determine the results of a cell, with the digest of its spectra.

        Excluded are the search (a row records its learning rate), placements, other cells and the title; these may change
        between runs.
        """
        declared: tuple[Any, ...]
        if isinstance(cell, BaselineCell):
            baseline: Baseline = next(each for each in self.baselines if each.family == cell.family)
            declared = (cell, self.data.rules, dataclasses.replace(baseline, cpus=1))
        else:
            declared = (cell, self.data.rules, self.model(cell.width), self.ladder.whitening, self.recipe)
        parts = [stable(part) for part in declared]
        return hashlib.sha256(json.dumps([*parts, data_digest], sort_keys=True).encode()).hexdigest()[:16]


def stable(value: Any) -> Any:
    """Convert a declaration to plain JSON values, the same in every process.

    Raises:
        TypeError: A value has no stable form; hashing a memory address would be wrong.
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
