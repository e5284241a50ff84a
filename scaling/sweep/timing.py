"""The timing run: how fast each kind of device of a cluster trains some rungs of a study, on synthetic spectra."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from scaling.data.batches import LinearMap, TrainingBatches, Worker
from scaling.data.batches.cache import default_cache_root
from scaling.data.batches.training import _Share
from scaling.errors import UserError
from scaling.model.ladder import train_flops
from scaling.study.declaration import Placement, Study
from scaling.sweep.costs import Speed, share_of
from scaling.training.device import cuda_device
from scaling.training.evaluate import autocast
from scaling.training.step import Stepper

SECONDS, CHUNK_SECONDS, WARM_UP = 2.0, 0.1, 3
POOL = 1024
"""Number of synthetic spectra from which batches are drawn, and which are scored at a time."""
MAX_COPIES = 8


class MadeUp(TrainingBatches):
    """Batches of random spectra already on the device, with the noise required by the rules.

    A batch has `rows` rows, of which the worker gets its share; they are the same on all devices and workers. Where the first
    label is 1 rather than 0, the first eighth of the pixels is brighter.
    """

    def __init__(self, study: Study, rows: int, device: torch.device, rank: int = 0, world: int = 1) -> None:
        rules, pixels = study.data.rules, study.ladder.num_pixels
        self.rules, self.seed, self.rows, self.steps_per_epoch = rules, 0, rows, 1
        self.worker = Worker(cache_root=default_cache_root(), device=device, rank=rank, world=world)
        self._noise: Any = rules.noise == "fixed" or None
        self._standardise: Any = lambda flux: flux
        generator = torch.Generator().manual_seed(0)
        pool = torch.randn(POOL, 1 if rules.noise == "fixed" else 2, pixels, generator=generator)
        labels = torch.randint(0, 2, (POOL, len(rules.labels)), generator=generator).float()
        pool[:, 0, : pixels // 8] += labels[:, :1]
        self.pool, self.labels = pool.to(device), labels.to(device)
        self._order = torch.randperm(POOL, generator=generator).repeat(1 + -(-rows // POOL)).to(device)

    def global_rows(self, step: int) -> int:
        """The same number for every batch."""
        return self.rows

    def close(self) -> None:
        """No-op: there is nothing to release."""

    def _open(self, shards: Any, access: Any) -> None:
        """No-op: there is nothing to open."""

    def _share(self, step: int) -> _Share:
        start, places = step * self.rows % POOL, slice(self.worker.rank, None, self.worker.world)
        chosen = self._order[start : start + self.rows][places]
        return _Share(self.pool[chosen], self.labels[chosen], places, self.rows)


def time_rung(study: Study, width: int, place: Placement, device: torch.device, seconds: float = SECONDS) -> Speed:
    """Train a rung for some seconds as one worker of a placement would, and score some spectra."""
    started = time.perf_counter()
    config, recipe = study.model(width), study.recipe
    batches = MadeUp(study, -(-recipe.batch_size // place.workers), device)
    rule = study.ladder.whitening
    whitening = None
    if rule is not None:
        size = config.whitening_components
        whitening = LinearMap(torch.randn(size, config.num_pixels), torch.zeros(size))
    stepper = Stepper(
        config,
        recipe,
        batches,
        lr=1e-4,
        seed=0,
        micro_batch=place.micro_batch,
        compiled=place.compiled,
        classify=study.data.rules.boundary is not None,
        whitening=whitening,
        frozen_epochs=rule.frozen_epochs if rule else 0,
    )
    schedule = recipe.runs(study.data.num_spectra[-1])[-1]

    def score(step: int) -> None:
        with torch.inference_mode(), autocast(device, recipe.precision):
            stepper.model(batches.pool[:, 0])

    stepper.step(0, schedule)
    wait_for(device)
    first = time.perf_counter() - started
    step_seconds = _seconds_of(lambda step: stepper.step(step, schedule), device, seconds)
    stepper.model.eval()
    name, gpu = ("cpu", False) if device.type == "cpu" else (torch.cuda.get_device_name(device), True)
    return Speed(
        device=name,
        memory=torch.cuda.mem_get_info(device)[1] if gpu else 0,
        gpu=gpu,
        share=share_of(place),
        workers=place.workers,
        precision=recipe.precision,
        width=width,
        tokens=config.num_tokens,
        rows=batches.rows,
        flops=float(train_flops(config, batches.rows)),
        step_seconds=step_seconds,
        eval_seconds=_seconds_of(score, device, seconds / 4) / POOL,
        start_seconds=max(0.0, first - step_seconds),
        compiled=place.compiled,
    )


def _seconds_of(call: Callable[[int], None], device: torch.device, seconds: float) -> float:
    """Median over chunks of calls; the GPU is synchronised only after each chunk, as in training."""
    chunk, taken, number = 1, list[float](), 0
    until = math.inf
    while not taken or time.perf_counter() < until:
        started = time.perf_counter()
        for _ in range(chunk):
            call(number)
            number += 1
        wait_for(device)
        each = (time.perf_counter() - started) / chunk
        if number <= WARM_UP:
            chunk, until = max(1, min(1000, math.ceil(CHUNK_SECONDS / each))), time.perf_counter() + seconds
        else:
            taken.append(each)
    return median(taken)


def wait_for(device: torch.device) -> None:
    """Synchronise with a GPU; a no-op on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rungs_to_time(study: Study) -> dict[Placement, list[int]]:
    """The smallest and the largest rung of each placement, and the study's middle one."""
    widths = defaultdict[Placement, set[int]](set)
    for cell in study.cells():
        widths[study.placement(cell)].add(cell.width)
    middle = study.widths[len(study.widths) // 2]
    return {place: sorted({min(mine), max(mine), *({middle} & mine)}) for place, mine in widths.items()}


def node_of_each_kind() -> list[dict[str, Any]]:
    """Ray's information on one node of each kind: same numbers and models of CPUs and GPUs."""
    import ray

    kinds: dict[tuple[object, ...], dict[str, Any]] = {}
    for node in ray.nodes():
        there = node["Resources"]
        if node["Alive"] and there.get("CPU"):
            models = tuple(sorted(name for name in there if name.startswith("accelerator_type:")))
            kinds.setdefault((models, there["CPU"], there.get("GPU", 0)), node)
    return list(kinds.values())


def time_rungs(study: Study, place: Placement, widths: list[int], seconds: float) -> list[Speed]:
    """A Ray task whose process has the devices of one worker."""
    if not place.gpus:
        torch.set_num_threads(max(1, int(place.cpus)))
    device = cuda_device() if place.gpus else torch.device("cpu")
    time_rung(study, widths[0], place, device, 0.0)  # warm-up: trials reuse the process, so one-time costs are excluded
    return [time_rung(study, width, place, device, seconds) for width in widths]


def measure(study: Study, say: Callable[[str], None], seconds: float = SECONDS) -> list[Speed]:
    """Time rungs, for some seconds each, on a node of each kind in the connected Ray cluster.

    As many tasks run concurrently as there would be workers, so that contention between them is included. Communication
    between the workers of one trial is not.

    Raises:
        UserError: No node has the devices of any placement, or none could be timed.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    found: list[Speed] = []
    for node in node_of_each_kind():
        on_node, there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False), node["Resources"]
        for place, widths in rungs_to_time(study).items():
            fitting = [there.get(name, 0) / each for name, each in (("CPU", place.cpus), ("GPU", place.gpus)) if each]
            copies = min(MAX_COPIES, math.floor(min(fitting) + 1e-9))
            if not copies:
                continue
            each = f"{place.gpus:g} GPU and " * (place.gpus > 0) + f"{place.cpus:g} CPU"
            host = node["NodeManagerHostname"]
            say(f"timing w{', w'.join(map(str, widths))} on {host}: {copies} workers of {each} side by side")
            task = ray.remote(time_rungs).options(num_cpus=place.cpus, num_gpus=place.gpus, scheduling_strategy=on_node)
            try:
                runs = ray.get([task.remote(study, place, widths, seconds) for _ in range(copies)])
            except ray.exceptions.RayError as error:
                reason = str(getattr(error, "cause", None) or error).strip().splitlines()[-1]
                say(f"node {host}: cannot be timed ({reason})")
                continue
            found += [_median(list(copy)) for copy in zip(*runs, strict=True)]
    if not found:
        raise UserError("--measure: no node of this cluster could time a rung; name a cluster with --address")
    return found


def _median(copies: list[Speed]) -> Speed:
    timed = ("step_seconds", "eval_seconds", "start_seconds")
    return copies[0].model_copy(update={name: median(getattr(copy, name) for copy in copies) for name in timed})
