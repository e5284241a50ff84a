"""The estimated cost of a study: hours per cell, wall time on a cluster, and a grid that fits a budget."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scaling.model import ladder
from scaling.study.declaration import Cell, Placement, Study
from scaling.study.store import Store, StudyFolder
from scaling.sweep.cluster import ray_cluster
from scaling.sweep.costs import (
    Costs,
    TrialCost,
    keep_speeds,
    read_calibration,
    read_speeds,
    speeds_of_rows,
    total_steps,
)
from scaling.sweep.modelled import Cluster, Simulated, occupied, simulate, smallest_cluster
from scaling.sweep.needs import Needs, NodeNeeds, device_needs, known_shards, node_needs, too_large
from scaling.sweep.trim import Precision, forecast_precision, trim
from scaling.training.device import CONTEXT
from scaling.training.recipe import samples_seen


@dataclass(frozen=True, slots=True, kw_only=True)
class CellPlan:
    """One cell's size and cost.

    `trial_flops` and `cost` are per trial; `trials` is the expected number, `at_most` the maximum. `steps` and
    `samples_seen` are for the whole budget; the cost includes the decays of branches. `device_hours` is for the expected
    trials.
    """

    cell: Cell
    num_params: int
    epochs: float
    steps: int
    samples_seen: int
    trial_flops: int
    cost: TrialCost
    trials: int
    at_most: int
    device_hours: float
    placement: Placement
    held_out: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All cells of a study, and a simulation of their sweep on a cluster."""

    study: Study
    cells: tuple[CellPlan, ...]
    cluster: Cluster
    sweep: Simulated

    @property
    def num_trials(self) -> int:
        """Maximum number of trials of all cells."""
        return sum(cell.at_most for cell in self.cells)

    @property
    def device_hours(self) -> float:
        """Expected device-hours of the study."""
        return sum(cell.device_hours for cell in self.cells)

    @property
    def most_device_hours(self) -> float:
        """Device-hours if every cell uses all its trials."""
        return sum(cell.device_hours / cell.trials * cell.at_most for cell in self.cells)


def make_plan(study: Study, costs: Costs | None = None, cluster: Cluster | None = None) -> Plan:
    """Compute each cell's parameters, steps, FLOPs and hours, and simulate the study on a cluster.

    Without `cluster`, it is the smallest suitable one.

    Raises:
        UserError: A cell can never run on the cluster.
    """
    costs, cluster = costs or Costs(study, [], []), cluster or smallest_cluster(study)
    known = {cell: costs.trial(cell) for cell in study.cells()}
    sweep = simulate(study, cluster, lambda cell: known[cell].seconds)
    cells, recipe = [], study.recipe
    for cell, cost in known.items():
        config, place = study.model(cell.width), study.placement(cell)
        steps = recipe.budget.steps(cell.num_spectra, recipe.batch_size)
        seen = samples_seen(steps, cell.num_spectra, recipe.batch_size)
        decays = total_steps(study, cell) - steps
        cells.append(
            CellPlan(
                cell=cell,
                num_params=ladder.count_parameters(config).reach_loss,
                epochs=seen / cell.num_spectra,
                steps=steps,
                samples_seen=seen,
                trial_flops=ladder.train_flops(config, seen + decays * recipe.batch_size),
                cost=cost,
                trials=sweep.trials[cell],
                at_most=study.search.trials if cell.seed == study.seeds[0] else 1,
                device_hours=sweep.trials[cell] * cost.seconds * occupied(study, place) / 3600,
                placement=place,
                held_out=study.held_out(cell),
            )
        )
    return Plan(study=study, cells=tuple(cells), cluster=cluster, sweep=sweep)


def planned_cluster(study: Study, nodes: int | None, cpus: float | None, gpus: float | None) -> Cluster:
    """The given cluster, by default one node like this machine, or the smallest suitable one if that is too small."""
    import torch

    here = Cluster(nodes=1, cpus=float(len(os.sched_getaffinity(0))), gpus=float(torch.cuda.device_count()))
    if nodes is None and cpus is None and gpus is None:
        return smallest_cluster(study) if here.lacks(study) else here
    return Cluster(nodes=nodes or 1, cpus=here.cpus if cpus is None else cpus, gpus=here.gpus if gpus is None else gpus)


def plan_costs(
    study: Study,
    store: Store | None,
    *,
    tflops: float | None,
    mfu: float,
    measure: bool,
    calibration: Path | None,
    address: str | None,
    say: Callable[[str], None],
) -> tuple[Costs, int | None]:
    """Costs of trials from the store, a calibration, and an optional timing run; and a GPU's bytes, if known.

    Raises:
        UserError: A speed is not positive, the store or the calibration cannot be used, or nothing could be timed.
    """
    manifest = known_shards(study, store)
    scored = manifest.num_rows("val"), manifest.num_rows("test")
    timed = read_calibration(calibration) if calibration else []
    Costs(study, [], timed, tflops=tflops, mfu=mfu, scored=scored)  # validates the numbers before anything is timed
    if measure and store is not None:
        from scaling.sweep.timing import measure as time_rungs

        store.check_writable()
        with ray_cluster(address):
            timed += keep_speeds(store, time_rungs(study, say))
    elif store is not None:
        timed += read_speeds(store)
    rows = speeds_of_rows(study, StudyFolder(store, study.name).rows()) if store is not None else []
    memory = min((speed.memory for speed in timed if speed.memory), default=None)
    return Costs(study, rows, timed, tflops=tflops, mfu=mfu, scored=scored), memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirements:
    """Needs of each rung on a worker's device, and of a node; `problems` lists what does not fit, with remedies."""

    workers: dict[str, Needs]
    node: NodeNeeds
    problems: tuple[str, ...]


def require(
    plan: Plan, *, store: Store | None = None, gpu_memory: float | None = None, cache_limit: int | None = None
) -> Requirements:
    """Device memory of each rung at its largest number of spectra, and memory and disk of a node.

    Args:
        plan: The plan.
        store: The study's store, which may contain its shard set.
        gpu_memory: Memory of a GPU in bytes; not checked if unknown.
        cache_limit: Size limit of a node's maps in bytes.
    """
    study, manifest = plan.study, known_shards(plan.study, store)
    workers: dict[str, Needs] = {}
    largest: dict[Placement, Needs] = {}
    unfit: dict[tuple[int, Placement], tuple[int, str]] = {}
    for cell in study.cells():
        place, name = study.placement(cell), f"w{cell.width}"
        share = max(0, int(min(1.0, place.gpus) * (gpu_memory or 0)) - CONTEXT) if place.gpus else 0
        needs = device_needs(study, cell.width, place, cell.num_spectra, manifest, share)
        workers[name] = max(workers.get(name, needs), needs, key=lambda each: each.total)
        largest[place] = max(largest.get(place, needs), needs, key=lambda each: each.total)
        if gpu_memory and place.gpus and (problem := too_large(needs, share, place, name)):
            key = (cell.width, place)
            unfit[key] = max(unfit.get(key, (0, "")), (needs.total, problem))
    problems = [problem for _, problem in unfit.values()]
    node = node_needs(study, plan.cluster, manifest, largest, cache_limit)
    problems += [node.problem] if node.problem else []
    return Requirements(workers=workers, node=node, problems=tuple(problems))


@dataclass(frozen=True, slots=True, kw_only=True)
class Trimmed:
    """A grid that fits a budget, and the precision of a forecast at the full grid's largest cell from either grid."""

    budget: float
    plan: Plan
    full: Precision
    trimmed: Precision


def within(plan: Plan, budget: float, costs: Costs) -> Trimmed:
    """Trim the grid until its expected device-hours fit.

    Raises:
        UserError: See `trim`.
    """
    made = {plan.study: plan}

    def hours(study: Study) -> dict[Cell, float]:
        if study not in made:
            made[study] = make_plan(study, costs, plan.cluster)
        return {cell.cell: cell.device_hours for cell in made[study].cells}

    study = trim(plan.study, budget, hours)
    target = (max(cell.num_params for cell in plan.cells), plan.study.data.num_spectra[-1])
    full = forecast_precision(plan.study, target)
    trimmed = full if study == plan.study else forecast_precision(study, target)
    return Trimmed(budget=budget, plan=made[study], full=full, trimmed=trimmed)
