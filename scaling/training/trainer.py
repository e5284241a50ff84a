"""The loop's two hosts: the trial's own process, and Ray Train workers. Same loop, same checkpoints, same result."""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from scaling.data.batches.cache import mapped_bytes
from scaling.errors import NodeError, UserError
from scaling.training.device import Device, be_deterministic, cuda_device, measure, take_share
from scaling.training.events import HParams
from scaling.training.guards import free_failed_starts, stop_at_mistakes
from scaling.training.loop import train
from scaling.training.metrics import all_reduce
from scaling.training.pruning import Hopeless
from scaling.training.recipe import Compiled
from scaling.training.recorder import Folder, Metrics, Recorder
from scaling.training.reports import bring_reports
from scaling.training.task import Context, Outcome, Task

REPORT_SECONDS = 3.0
"""Minimum interval between evaluations sent to dashboards; the trial's curve on disk has all.

Ray Train's controller takes a report every 2 s, and Tune's replies to each one from a trial's own process; the worker
waits meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One trial as a host runs it.

    `finish` is called in the process of rank 0 with each budget's outcome and the device; a resumed trial may repeat the call
    for a shorter budget. `identity` and `setting` together are everything that determines the result, as `Recorder`
    compares them with a saved state's. `micro_batch` and `compiled` are those of `Stepper`. `shown` are the settings by which
    dashboards show the trial.

    With `min_workers`, training continues without a lost worker that is not replaced: Ray Train resumes from the last state
    with the workers there is room for, and looks for more once a minute. Tested by hand with two nodes on one machine: 65 and
    95 s after one was removed the other continued alone (Ray waits 60 s for the lost one); 60 s after its return, both ran.
    """

    name: str
    identity: str
    setting: str = ""
    task: Task
    folder: Folder
    finish: Callable[[Outcome, Device], None]
    hopeless: Hopeless | None = None
    workers: int = 1
    min_workers: int | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    micro_batch: int | None = None
    compiled: Compiled = False
    deterministic: bool = False
    shown: HParams = field(default_factory=dict)


def run_in_process(job: Job, forward: Callable[[dict[str, Any]], None]) -> None:
    """Train in this process, on a device that other trials may share.

    Raises:
        NodeError: PyTorch cannot use the node's GPU.
    """
    device = cuda_device() if job.gpus > 0 else torch.device("cpu")
    if device.type == "cuda":
        take_share(device, job.gpus)
    _run(job, _seldom(forward, job, 0, device), rank=0, world=1, device=device)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the process is reused and the device shared


def run_under_ray_train(
    job: Job,
    storage: str,
    forward: Callable[[Metrics], None] = lambda metrics: None,
    *,
    max_failures: int,
    nodes: tuple[str, ...] | None = None,
) -> None:
    """Train with Ray Train: `job.workers` workers, restarted from the last state when one is lost.

    Args:
        job: The trial.
        storage: A folder or URI that all nodes can access, for Ray Train's own bookkeeping.
        forward: Called with each report of rank 0, in another thread of this process.
        max_failures: Number of restarts of failed or lost workers.
        nodes: Ray ids of the nodes that workers may use; any by default.

    Raises:
        UserError: Raised by a worker, immediately: a retry would not help.
        NodeError: The workers cannot start, for example because PyTorch cannot use the GPU; their devices are freed.
        RuntimeError: The trial fails for good; includes the cause.
    """
    from ray import train as ray_train
    from ray.train.torch import TorchTrainer

    resources = {"CPU": job.cpus} | ({"GPU": job.gpus} if job.gpus else {})
    selector: dict[str, Any] = {"label_selector": {"ray.io/node-id": f"in({','.join(nodes)})"}} if nodes else {}
    workers: Any = (job.min_workers, job.workers) if job.min_workers else job.workers
    with bring_reports(forward) as reports:
        trainer = TorchTrainer(
            _ray_train_worker,
            train_loop_config={"job": job},
            scaling_config=ray_train.ScalingConfig(
                num_workers=workers,
                use_gpu=job.gpus > 0,
                resources_per_worker=resources,
                **selector,
            ),
            run_config=ray_train.RunConfig(
                name=job.name,
                storage_path=storage,
                failure_config=ray_train.FailureConfig(max_failures=max_failures),
                callbacks=[stop_at_mistakes(), free_failed_starts(max_failures), reports],
            ),
        )
        try:
            trainer.fit()
        except ray_train.ControllerError as error:
            if isinstance(error.controller_failure, UserError):
                raise error.controller_failure from None
            raise


def _ray_train_worker(config: dict[str, Any]) -> None:
    import ray
    from ray import train as ray_train
    from ray.train.torch import get_device

    context = ray_train.get_context()
    ray_train.report({"began": 1.0})  # the workers have their devices; the first evaluation may be long after
    job: Job = config["job"]
    try:
        _run(
            job,
            _seldom(ray_train.report, job, context.get_world_rank(), get_device()),
            rank=context.get_world_rank(),
            world=context.get_world_size(),
            device=get_device(),
        )
    except NodeError as error:
        error.node = ray.get_runtime_context().get_node_id()
        raise


def _seldom(
    report: Callable[[dict[str, Any]], None], job: Job, rank: int, device: torch.device
) -> Callable[[Metrics], None]:
    """Throttle reports to one per `REPORT_SECONDS` of rank 0's clock, as Ray Train waits for all workers' reports.

    Each report has this host's name and the size of its memory maps.
    """
    due, root = 0.0, job.task.cache_root

    def forward(metrics: Metrics) -> None:
        nonlocal due
        wanted = rank == 0 and time.monotonic() >= due
        if float(all_reduce(torch.tensor(float(wanted), device=device))):
            report({**metrics, "host": socket.gethostname(), "cache_bytes": mapped_bytes(root)})
            due = time.monotonic() + REPORT_SECONDS

    return forward


def _run(job: Job, forward: Callable[[Metrics], None], *, rank: int, world: int, device: torch.device) -> None:
    # Many small concurrent trials run faster with one thread each, and then give the same bits wherever they run.
    torch.set_num_threads(max(1, int(job.cpus)) if device.type == "cpu" else torch.get_num_threads())
    logging.getLogger("torch.distributed").setLevel(logging.ERROR)
    be_deterministic(job.deterministic)
    recorder = Recorder(job.folder, job.identity, job.setting, forward, keeps=rank == 0, shown=job.shown)
    measured = measure(device, job.task.recipe.precision, job.task.cache_root)

    def finish(outcome: Outcome) -> None:
        if rank == 0:
            recorder.flush()
            job.finish(outcome, measured)

    context = Context(
        rank=rank,
        world=world,
        device=device,
        report=recorder.report,
        load=recorder.load,
        refuse=recorder.refuse,
        branch=finish,
        device_share=min(1.0, job.gpus) if device.type == "cuda" else 1.0,
        micro_batch=job.micro_batch,
        compiled=job.compiled,
        hopeless=job.hopeless,
    )
    with contextlib.closing(recorder):
        finish(train(job.task, context))
