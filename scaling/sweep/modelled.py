"""Simulation of a study without training: the sweep's own searcher with simulated trials, nodes and clock."""

from __future__ import annotations

import dataclasses
import functools
import heapq
import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from scaling.data.seeds import stable_seed
from scaling.errors import UserError
from scaling.model.ladder import count_parameters
from scaling.results import Row
from scaling.study.declaration import Cell, Placement, Study
from scaling.sweep.admission import fits_ever
from scaling.sweep.baselines import Baselines
from scaling.sweep.nodes import Node
from scaling.sweep.rates import Rates

RAY_TRAIN_SECONDS = 20.0
"""Time until the workers of a trial under Ray Train begin; 9 to 20 s were measured."""
MAX_NODES = 10_000
CURVATURE, DRIFT = 0.05, (0.2, 0.1)
"""Curvature of the modelled log error in the log rate; powers of width and D by which the best rate drifts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A cluster of `nodes` identical nodes."""

    nodes: int
    cpus: float
    gpus: float

    def offers(self) -> list[Node]:
        """The nodes as the searcher sees them.

        Raises:
            UserError: There are too many to simulate.
        """
        if self.nodes > MAX_NODES:
            raise UserError(
                f"a cluster of {self.nodes} nodes: at most {MAX_NODES} are planned for; give fewer with --nodes"
            )
        return [Node(id=f"n{i}", host=f"n{i}", cpus=self.cpus, gpus=self.gpus, room=0) for i in range(self.nodes)]

    def lacks(self, study: Study) -> Cell | None:
        """A cell that can never run here, or None."""
        offers = self.offers()
        return next((cell for cell in study.cells() if not fits_ever(study.placement(cell), offers)), None)

    def describe(self) -> str:
        """The cluster as text."""
        return f"{self.nodes} x ({self.cpus:g} CPU, {self.gpus:g} GPU)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """Durations of a simulated sweep, in seconds; `work` is device time, on GPUs if any placement has some, else CPUs.

    `chain` is the longest sequence of trials that depend on each other, `chain_cells` are its cells.
    """

    trials: Counter[Cell]
    wall: float
    work: float
    devices: float
    chain: float
    chain_cells: tuple[Cell, ...]

    @property
    def bound(self) -> float:
        """Lower bound on the duration of any schedule."""
        return max(self.work / self.devices, self.chain)

    @property
    def utilisation(self) -> float:
        """Fraction of the devices' time that is used by trials."""
        return self.work / (self.devices * self.wall)


def simulate(study: Study, cluster: Cluster, seconds: Callable[[Cell], float]) -> Simulated:
    """Simulate a study with trial durations `seconds(cell)` and errors from `Study.expected`; no trial is pruned.

    Raises:
        UserError: A cell can never run on this cluster.
    """
    from scaling.sweep.search import SweepSearch

    now, offers, rates = 0.0, cluster.offers(), Rates(study, [])
    if cell := cluster.lacks(study):
        raise UserError(
            f"cell {cell.key} needs {study.placement(cell).describe()}; the cluster has {cluster.describe()}: "
            "give another with --nodes, --cpus-per-node and --gpus-per-node, or change Study.placements"
        )
    nodes = SimpleNamespace(
        look=lambda: offers, problem="", hosts=lambda ids: "", trial_finished=lambda: None, pending=lambda: ""
    )

    def make(cell: Cell, number: int, lr: float, **_: Any) -> Any:
        return SimpleNamespace(cell=cell, number=number, lr=lr, key=cell.trial(number), about=dict)

    silent: Any = _Silent()
    none = Baselines([], print)
    search = SweepSearch(study, make, rates, nodes, silent, silent, lambda bundles: None, none, clock=lambda: now)  # type: ignore[arg-type]
    events: list[tuple[float, str, str]] = []
    queued: list[str] = []
    work, count = 0.0, Counter[Cell]()

    def start(name: str) -> None:
        search.on_trial_start(name)
        taken = seconds(search.live[name].trial.cell)
        heapq.heappush(events, (now + min(RAY_TRAIN_SECONDS, taken), name, "begins"))
        heapq.heappush(events, (now + taken, name, "ends"))

    while True:
        while isinstance(search.suggest(name := f"t{count.total()}"), dict):
            count[search.live[name].trial.cell] += 1
            if search.live[name].queued:
                queued.append(name)
            else:
                start(name)
        if not events:
            break
        now, name, what = heapq.heappop(events)
        if what == "begins":  # a trial under Ray Train gets its workers
            search.on_trial_result(name, {})
            continue
        attempt = search.live[name]
        work += seconds(attempt.trial.cell) * occupied(study, attempt.placement)
        search.on_trial_result(name, {"row": _row(study, attempt.trial).to_json()})
        search.on_trial_complete(name, {})
        if follower := next((other for other in queued if search.live[other].nodes == attempt.nodes), None):
            queued.remove(follower)
            start(follower)
    assert not rates.remaining(), "the simulated study did not finish"
    chain, cells = _longest_chain(rates, seconds)
    each = cluster.gpus if uses_gpus(study) else cluster.cpus
    devices = cluster.nodes * each
    return Simulated(trials=count, wall=now, work=work, devices=devices, chain=chain, chain_cells=cells)


def uses_gpus(study: Study) -> bool:
    """Whether the study runs on GPUs."""
    return any(placement.gpus for placement in study.placements)


def occupied(study: Study, placement: Placement) -> float:
    """Number of devices that a trial occupies."""
    return placement.workers * (placement.gpus if uses_gpus(study) else placement.cpus)


def smallest_cluster(study: Study) -> Cluster:
    """Identical nodes on which the study's largest trial, and so every trial, fits."""
    used = {study.placement(cell) for cell in study.cells()}
    return Cluster(
        nodes=max(place.workers for place in used),
        cpus=max(place.cpus for place in used),
        gpus=math.ceil(max(place.gpus for place in used)),
    )


class _Silent:
    """A stand-in for objects that display or record."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


@functools.cache
def template_row() -> Row:
    """A row of no real trial, for fields that a modelled trial does not have."""
    from analysis.points.example import example_rows

    return Row(**json.loads(example_rows().iloc[:1].to_json(orient="records"))[0])


def _row(study: Study, trial: Any) -> Row:
    """The row of a modelled trial, best at a rate that drifts from the declared one."""
    cell, sizes = trial.cell, study.data.num_spectra
    best = study.search.centre(cell.width) * math.prod(
        (value**2 / (grid[0] * grid[-1])) ** (power / 2)
        for value, grid, power in zip((cell.width, cell.num_spectra), (study.widths, sizes), DRIFT, strict=True)
    )
    away = math.log(trial.lr / best)
    chance = np.random.default_rng(stable_seed("modelled", trial.key)).normal()
    error = study.expected.error(count_parameters(study.model(cell.width)).reach_loss, cell.num_spectra)
    error *= math.exp(CURVATURE * away**2 + study.expected.scatter * chance)
    known = {"cell": cell.key, "trial": trial.key, "lr": trial.lr, "seed": cell.seed}
    return dataclasses.replace(template_row(), **known, val_mae_dex=error, test_mae_dex=error)


def _longest_chain(rates: Rates, seconds: Callable[[Cell], float]) -> tuple[float, tuple[Cell, ...]]:
    """The slowest anchor's rounds, then those of the slowest cell and its further seed; trials 1 and 2 are parallel."""
    rounds = {cell: len([number for number in rows if number != 2]) for cell, rows in rates.rows.items()}

    def path(cell: Cell) -> float:
        return sum(seconds(each) * rounds[each] for each in {rates.first(cell), cell})

    anchor = max(rates.anchors, key=path)
    others = [cell for cell in rates.rows if rates.first(cell) not in rates.anchors]
    last = max(others, key=path, default=None)
    if last is None:
        last = max(rates.rows, key=path)
        return path(last), (last,)
    return path(anchor) + path(last), (anchor, last)
