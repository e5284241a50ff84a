"""The loop's two hosts: the trial's own process, and Ray Train's workers. Same loop, same checkpoints, same result."""

from __future__ import annotations

import csv
import io
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from scaling.errors import UserError
from scaling.training.loop import Context, Outcome, State, Task, train

Metrics = dict[str, float]


class Folder(Protocol):
    """Where a trial keeps its curve and the state it resumes from. Every worker's node must reach it."""

    def write_progress(self, csv: str, events: bytes) -> None:
        """Replace the curve."""

    def write_state(self, content: bytes) -> None:
        """Replace the state."""

    def read_state(self) -> bytes | None:
        """The last state, if any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One trial as a host runs it. `finish` is called once, in the process of rank 0, with the outcome and the device.

    `identity` is everything that determines the result: a state saved under another identity is not resumed from.
    """

    name: str
    identity: str
    task: Task
    folder: Folder
    finish: Callable[[Outcome, str], None]
    workers: int = 1
    cpus: float = 1.0
    gpus: float = 0.0


class Recorder:
    """Keeps a trial's curve and state in its folder. The curve is part of the state: no point is lost or doubled."""

    def __init__(self, job: Job, forward: Callable[[Metrics], None], *, keeps: bool) -> None:
        self.folder, self.identity, self.forward, self.keeps = job.folder, job.identity, forward, keeps
        self.curve: list[Metrics] = []

    def load(self) -> State | None:
        """The state to resume from, if this very trial left one."""
        content = self.folder.read_state()
        if content is None:
            return None
        saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if saved["identity"] != self.identity:
            return None
        self.curve = saved["curve"]
        return saved["loop"]

    def report(self, metrics: Metrics, state: State) -> None:
        """Keep an evaluation (on rank 0) and forward its metrics to the host (on all)."""
        if self.keeps:
            self.curve.append({**metrics, "time": time.time()})
            content = io.BytesIO()
            torch.save({"identity": self.identity, "loop": state, "curve": self.curve}, content)
            self.folder.write_state(content.getvalue())
            self.folder.write_progress(_csv(self.curve), _tensorboard_events(self.curve))
        self.forward(metrics)


def run_in_process(job: Job, forward: Callable[[Metrics], None]) -> None:
    """Train in this process, on a device that other trials may share."""
    device = torch.device("cuda", 0) if job.gpus > 0 else torch.device("cpu")
    _run(job, forward, rank=0, world=1, device=device)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the process is reused; the device is shared


def run_under_ray_train(job: Job, storage: str, forward: Callable[[], Any] | None = None) -> None:
    """Train with Ray Train: `job.workers` workers, restarted from the last state when one is lost.

    Args:
        job: the trial.
        storage: a folder or URI that all nodes reach, for Ray Train's own bookkeeping.
        forward: makes a Ray Train callback that forwards the metrics, e.g. to Tune.

    Raises:
        UserError: as a worker raised it, at once: trying again would not help.
        RuntimeError: with the cause, if the trial fails for good.
    """
    from ray import train as ray_train
    from ray.train.torch import TorchTrainer

    resources = {"CPU": job.cpus} | ({"GPU": job.gpus} if job.gpus else {})
    trainer = TorchTrainer(
        _ray_train_worker,
        train_loop_config={"job": job},
        scaling_config=ray_train.ScalingConfig(
            num_workers=job.workers, use_gpu=job.gpus > 0, resources_per_worker=resources
        ),
        run_config=ray_train.RunConfig(
            name=job.name,
            storage_path=storage,
            failure_config=ray_train.FailureConfig(max_failures=3),
            callbacks=[_stop_at_mistakes(), *([forward()] if forward else [])],
        ),
    )
    try:
        trainer.fit()
    except ray_train.ControllerError as error:
        if isinstance(error.controller_failure, UserError):
            raise error.controller_failure from None
        raise


def _stop_at_mistakes() -> Any:
    """A Ray Train callback that ends a run, on all its workers, at a worker's `UserError`.

    Ray Train starts the workers again whatever one of them raised; only what a callback raises ends a run at once.
    """
    from ray.train import UserCallback

    class StopAtMistakes(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            for error in worker_exceptions.values():
                if isinstance(error, UserError):
                    raise error

    return StopAtMistakes()


def _ray_train_worker(config: dict[str, Any]) -> None:
    from ray import train as ray_train
    from ray.train.torch import get_device

    context = ray_train.get_context()
    _run(
        config["job"],
        ray_train.report,
        rank=context.get_world_rank(),
        world=context.get_world_size(),
        device=get_device(),
    )


def _run(job: Job, forward: Callable[[Metrics], None], *, rank: int, world: int, device: torch.device) -> None:
    # Many small trials side by side are faster with one thread each, and then give the same bits wherever they run.
    torch.set_num_threads(max(1, int(job.cpus)) if device.type == "cpu" else torch.get_num_threads())
    logging.getLogger("torch.distributed").setLevel(logging.ERROR)
    recorder = Recorder(job, forward, keeps=rank == 0)
    context = Context(
        rank=rank,
        world=world,
        device=device,
        report=recorder.report,
        load=recorder.load,
        device_share=min(1.0, job.gpus) if device.type == "cuda" else 1.0,
    )
    outcome = train(job.task, context)
    if rank == 0:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        job.finish(outcome, name)


def _csv(curve: list[Metrics]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(curve[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(curve)
    return text.getvalue()


def _tensorboard_events(curve: list[Metrics]) -> bytes:
    """The curve as a TensorBoard event file. It only ever grows at its end, so a live TensorBoard can follow it."""
    content = io.BytesIO()
    writer = RecordWriter(content)
    writer.write(Event(wall_time=curve[0]["time"], file_version="brain.Event:2").SerializeToString())
    for point in curve:
        scalars = [Summary.Value(tag=k, simple_value=v) for k, v in point.items() if k not in ("step", "time")]
        event = Event(wall_time=point["time"], step=int(point["step"]), summary=Summary(value=scalars))
        writer.write(event.SerializeToString())
    return content.getvalue()
