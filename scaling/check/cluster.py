"""Checks on one node of each kind: a single device, shared devices, and two devices that train together."""

from __future__ import annotations

import dataclasses
import math
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from scaling.check.bench import Bench, default_study, losses
from scaling.check.device import check_device
from scaling.check.findings import Finding, Report, within
from scaling.check.numerics import SAME, difference
from scaling.errors import UserError
from scaling.study.declaration import Placement, Study
from scaling.sweep.nodes import SAY_AFTER
from scaling.sweep.timing import node_of_each_kind, time_rungs
from scaling.training.device import cuda_device

SECONDS = 1.0
COPIES = 4
PAYS = 1.3
"""Minimum gain in total throughput at which a fraction of a GPU is recommended."""


def check_cluster(study: Study | None, say: Callable[[str], None], seconds: float = SECONDS) -> list[Report]:
    """Check one device of each kind in the connected Ray cluster: a GPU if a node has one, else a CPU.

    Args:
        study: The study whose rungs are checked; built-in ones if None.
        say: Called with progress messages.
        seconds: Duration of timing a rung in each precision.

    Raises:
        UserError: No node could be checked.
    """
    import ray

    reports = []
    for node in node_of_each_kind():
        gpus, host = node["Resources"].get("GPU", 0.0), node["NodeManagerHostname"]
        place, chosen = Placement(gpus=1) if gpus else Placement(), study or default_study(gpu=gpus > 0)
        say(f"checking a {'GPU' if gpus else 'CPU'} of {host}")
        try:
            if not ray.wait(_begin(node, _nothing, [()], place), timeout=SAY_AFTER)[0]:
                say(f"waiting for {place.describe()} of {host}: in use by others, or the node does not answer")
            (report,) = _on(node, check_device, [(chosen, place, host, seconds)], place)
            if report.speeds:
                report.findings.append(_shared(node, chosen, report, seconds))
            if node["Resources"]["GPU" if gpus else "CPU"] >= 2:
                report.findings.append(_together(node, chosen, place))
        except ray.exceptions.RayError as error:
            reason = str(getattr(error, "cause", None) or error).strip().splitlines()[-1]
            say(f"node {host}: cannot be checked ({reason})")
            continue
        reports.append(report)
    if not reports:
        raise UserError("no node of this cluster could be checked; name a cluster with --address")
    return reports


def _nothing() -> None:
    """An empty task that starts once its devices are free."""


def _on(
    node: dict[str, Any], function: Callable[..., Any], calls: list[tuple[Any, ...]], place: Placement
) -> list[Any]:
    """Results of concurrent calls of a function in tasks on a node, each with the resources of a placement."""
    import ray

    return ray.get(_begin(node, function, calls, place))


def _begin(
    node: dict[str, Any], function: Callable[..., Any], calls: list[tuple[Any, ...]], place: Placement
) -> list[Any]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    task = ray.remote(function).options(
        num_cpus=place.cpus, num_gpus=place.gpus, max_retries=0, scheduling_strategy=there
    )
    return [task.remote(*call) for call in calls]


def _shared(node: dict[str, Any], study: Study, report: Report, seconds: float) -> Finding:
    """Throughput gain of trials that share a GPU, or use one CPU each, over a single trial."""
    gpus = node["Resources"].get("GPU", 0.0)
    copies = COPIES if gpus else min(COPIES, math.floor(node["Resources"]["CPU"]))
    place = Placement(gpus=1 / COPIES) if gpus else Placement()
    precision = study.recipe.precision if study.recipe.precision in report.peaks else "fp32"
    widths = [speed.width for speed in report.speeds if speed.precision == precision]
    timed = dataclasses.replace(study, recipe=dataclasses.replace(study.recipe, precision=precision))
    call = (timed, place, widths, seconds)
    (first,) = _on(node, time_rungs, [call], place)  # directly before the others, since a machine's speed drifts
    alone = {speed.width: speed.step_seconds for speed in first}
    runs = _on(node, time_rungs, [call] * copies, place)
    gain = {
        width: copies * alone[width] / median(speed.step_seconds for speed in each)
        for width, each in zip(alone, zip(*runs, strict=True), strict=True)
    }
    found = f"{copies} side by side in {precision} train as one, times: "
    found += ", ".join(f"w{width} {times:.2f}" for width, times in gain.items())
    worth = [f"w{width}" for width, times in gain.items() if times >= PAYS]
    if gpus:
        found += f"; Placement(gpus={1 / COPIES}) pays for {', '.join(worth) or 'none'}"
    return Finding(check="side by side", verdict="ok", found=found)


def _together(node: dict[str, Any], study: Study, place: Placement) -> Finding:
    """Compare two workers of one trial with one worker, over NCCL on GPUs and gloo on CPUs."""
    meeting = Path(tempfile.gettempdir()) / f"scaling-check-{uuid.uuid4().hex}"
    calls = [(study, place.gpus > 0, rank, str(meeting)) for rank in (0, 1)]
    try:
        (alone, shared), _ = _on(node, _worker, calls, place)
    except Exception as error:
        reason = str(getattr(error, "cause", None) or error).strip().splitlines()[-1]
        remedy = "leave Placement.workers at 1, or correct the network between the devices"
        return Finding(check="two workers", verdict="failed", found=reason[:300], remedy=remedy)
    found = {"fp32": difference(shared, alone)}
    what = "losses, relative difference from one worker's"
    return within("two workers", found, {"fp32": SAME}, what, "leave Placement.workers at 1")


def _worker(study: Study, gpu: bool, rank: int, meeting: str) -> tuple[list[float], list[float]]:
    """The losses of some steps by one worker alone, then by both together."""
    torch.set_num_threads(1 if not gpu else torch.get_num_threads())
    bench = Bench(study, cuda_device() if gpu else torch.device("cpu"))
    alone = losses(bench.stepper(bench.middle), range(5))
    torch.distributed.init_process_group(
        "nccl" if gpu else "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2
    )
    try:
        return alone, losses(bench.stepper(bench.middle, rank=rank, world=2), range(5))
    finally:
        torch.distributed.destroy_process_group()
        Path(meeting).unlink(missing_ok=True)
