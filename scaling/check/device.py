"""All checks of one device, run in a process that owns it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from scaling.check import numerics
from scaling.check.bench import Bench
from scaling.check.delivery import delivery, memory
from scaling.check.findings import Finding, Report
from scaling.study.declaration import Placement, Study
from scaling.sweep.costs import Speed
from scaling.sweep.health import try_gpu
from scaling.sweep.timing import time_rung
from scaling.training.device import cuda_device, measure

REMEDY = "install a torch for a CUDA version that this driver supports, or leave the node out of the cluster"
CHECKS: tuple[Callable[[Bench], Finding | None], ...] = (
    numerics.versions,
    numerics.products,
    numerics.gradients,
    numerics.curves,
    numerics.resumes,
    numerics.repeats,
    numerics.waits,
    numerics.compiled,
)


def check_device(study: Study, place: Placement, host: str, seconds: float) -> Report:
    """Check the device of this process: a GPU if the placement has one, else a CPU.

    Args:
        study: The study whose rungs, noise and batch size are checked and timed.
        place: The resources of a trial.
        host: The node's name, for the report.
        seconds: Duration of timing a rung in each precision.
    """
    torch.set_num_threads(max(1, int(place.cpus)) if not place.gpus else torch.get_num_threads())
    if place.gpus and (problem := try_gpu()):
        finding = Finding(check="device", verdict="failed", found=problem, remedy=REMEDY)
        return Report(host=host, device="GPU", findings=[finding], speeds=[], peaks={})
    bench = Bench(study, cuda_device() if place.gpus else torch.device("cpu"))
    measured = {precision: measure(bench.device, precision) for precision in bench.precisions}
    findings = [_guarded(check.__name__, check, bench) for check in CHECKS]
    timed = speeds(bench, place, seconds)
    findings += [
        _guarded("memory", lambda bench: memory(bench, place), bench),
        _guarded("batches", lambda bench: delivery(bench, timed, seconds), bench),
    ]
    return Report(
        host=host,
        device=measured["fp32"].name,
        findings=[finding for finding in findings if finding],
        speeds=timed,
        peaks={precision: each.peak_flops for precision, each in measured.items()},
    )


def _guarded(name: str, check: Callable[[Bench], Finding | None], bench: Bench) -> Finding | None:
    """Run one check; an exception counts as a failed check, and the others still run."""
    try:
        return check(bench)
    except Exception as error:  # drivers, compilers and PyTorch raise anything
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        remedy = "what it stands for cannot be used on this device; leave it out of Recipe and Placement"
        return Finding(check=name, verdict="failed", found=reason[:300], remedy=remedy)


def speeds(bench: Bench, place: Placement, seconds: float) -> list[Speed]:
    """Training and scoring speed of each rung in each precision, as in a trial."""
    found = []
    for precision in bench.precisions:
        recipe = dataclasses.replace(bench.study.recipe, precision=precision)
        study = dataclasses.replace(bench.study, recipe=recipe)
        time_rung(study, bench.widths[0], place, bench.device, 0.0)  # warm-up: one-time costs of a process are excluded
        found += [time_rung(study, width, place, bench.device, seconds) for width in bench.widths]
    return found
