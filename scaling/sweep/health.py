"""Tests of a node before its first trial, run there as Ray tasks."""

from __future__ import annotations

import contextlib
import datetime
import os
import shutil
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaling.data.shards.manifest import MANIFEST
from scaling.errors import UserError
from scaling.files import Location, private_folder
from scaling.folder import Folder
from scaling.sweep.code import PACKAGE, code_hash

NCCL_TIMEOUT = datetime.timedelta(seconds=60)


def look_around(shards: Location, cache_root: Path, code: str) -> tuple[str, int, str]:
    """The host's name, the space for its memory maps in bytes, and why it cannot take part (empty if it can)."""
    problem, room = "", 0
    if code_hash() != code:
        problem = (
            f"{PACKAGE} there is other code ({code_hash()}) than the study's ({code}): install the same, or remove it"
        )
    try:
        if Folder.at(shards).size(MANIFEST) is None:
            missing = f"{Folder.at(shards).locate(MANIFEST)} is not there"
            problem = problem or f"{missing}: put the shards where every node sees them"
    except OSError as error:
        problem = problem or f"{shards}: cannot be read ({error}): put the shards where every node sees them"
    try:
        private_folder(cache_root)
        if not os.access(cache_root, os.W_OK):
            raise PermissionError("it is read-only")
        room = shutil.disk_usage(cache_root).free + _stored(cache_root)
    except (OSError, UserError) as error:
        problem = problem or f"{cache_root} cannot hold memory maps ({error}): give another folder with --cache"
    return socket.gethostname(), room, problem


def _stored(folder: Path) -> int:
    """Disk usage in bytes of the files below a folder; what another process removes meanwhile counts as 0."""
    total = 0
    for root, _, names in os.walk(folder):  # unlike Path.rglob, it skips a folder that vanishes
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(os.path.join(root, name)).st_blocks * 512
    return total


def try_gpu() -> str:
    """Multiply and all-reduce on the one GPU of this task; returns the failure, empty if there is none."""
    import torch

    from scaling.training.device import cuda_device

    try:
        ones = torch.ones(256, 256, device=cuda_device())
        if (ones @ ones).sum().item() != 256.0**3:
            return "a matrix product on the GPU is wrong"
        torch.distributed.init_process_group(
            "nccl", store=torch.distributed.HashStore(), rank=0, world_size=1, timeout=NCCL_TIMEOUT
        )
        torch.distributed.all_reduce(ones)
        torch.cuda.synchronize()
        torch.distributed.destroy_process_group()
    except UserError as error:
        return str(error)
    except Exception as error:  # any error of CUDA or NCCL is the node's
        return f"torch {torch.__version__} fails on the GPU: {str(error).splitlines()[0]}"
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """The tasks that check a node: one for the host, and one on each of its GPUs if the study needs them."""

    info: dict[str, Any]
    tasks: list[Any]
    attempt: int
    started: float

    @classmethod
    def start(cls, info: dict[str, Any], arguments: tuple[Any, ...], gpus_needed: bool, attempt: int = 1) -> Check:
        """Start to check a node; `info` is its entry in `ray.nodes()`, the arguments are those of `look_around`."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        there = {"scheduling_strategy": NodeAffinitySchedulingStrategy(info["NodeID"], soft=False), "max_retries": 0}
        try_one = ray.remote(try_gpu).options(num_cpus=0, num_gpus=1, **there)
        gpus = int(info["Resources"].get("GPU", 0)) if gpus_needed else 0
        tasks = [
            ray.remote(look_around).options(num_cpus=0, **there).remote(*arguments),
            *(try_one.remote() for _ in range(gpus)),
        ]
        return cls(info=info, tasks=tasks, attempt=attempt, started=time.monotonic())

    @property
    def host(self) -> str:
        """The host's name in Ray."""
        return self.info["NodeManagerHostname"]

    def done(self) -> bool:
        """Whether all tasks have ended."""
        import ray

        return len(ray.wait(self.tasks, num_returns=len(self.tasks), timeout=0)[0]) == len(self.tasks)

    def waits_for(self) -> str:
        """Description of the unfinished tasks."""
        import ray

        ready, _ = ray.wait(self.tasks[:1], timeout=0)
        what = "its GPUs are in use or do not answer" if ready else "no answer"
        return f"{what} for {time.monotonic() - self.started:.0f} s"

    def result(self) -> tuple[str, int, str]:
        """The result of `look_around`, with problems of the GPUs.

        Raises:
            RayError: A task was lost.
        """
        import ray

        (host, room, problem), *gpus = ray.get(self.tasks)
        return host, room, problem or "; ".join(dict.fromkeys(filter(None, gpus)))
