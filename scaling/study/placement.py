"""Where a trial runs, and how its workers take a step."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from scaling.errors import UserError
from scaling.parse import Count, Natural, Positive, declared
from scaling.training.recipe import Compiled


@declared
class Placement:
    """What a trial of at least this width and this many spectra occupies. The last placement that applies holds.

    `gpus` can be a fraction: such trials share a device, each in its own process. A trial with several workers, or
    with whole GPUs, runs under Ray Train; with `min_workers` it continues with fewer where a lost one is not replaced.
    `micro_batch` bounds the spectra that a worker takes through the model at a time. `compiled` uses `torch.compile`,
    "reduce-overhead" with CUDA graphs: for rungs whose steps wait for the launch of kernels. `deterministic` gives the same
    bits run after run on a GPU too, more slowly; on a CPU they are the same anyway.
    """

    from_width: Natural = 0
    from_spectra: Natural = 0
    workers: Count = 1
    cpus: Positive = 1.0
    gpus: Annotated[float, Field(ge=0)] = 0.0
    min_workers: Count | None = None
    micro_batch: Count | None = None
    compiled: Compiled = False
    deterministic: bool = False

    def __post_init__(self) -> None:
        """Compare the fields.

        Raises:
            UserError: naming the field, its value and the remedy.
        """
        if self.min_workers is not None and self.min_workers > self.workers:
            raise UserError(f"Placement.min_workers = {self.min_workers}: must be in 1 ... workers = {self.workers}")
        if (self.workers > 1 or self.gpus > 1) and self.gpus % 1:
            raise UserError(f"{self}: gpus must be whole above 1, and where a trial has several workers")
        if self.compiled == "reduce-overhead" and (self.micro_batch or self.workers > 1 or not self.gpus):
            raise UserError(
                f"{self}: compiled='reduce-overhead' is for one worker with a GPU and no micro_batch; use compiled=True"
            )

    @property
    def host(self) -> str:
        """ "ray_train" for whole devices and several workers, "process" for trials that share a device."""
        return "ray_train" if self.workers > 1 or self.gpus >= 1 else "process"

    def describe(self) -> str:
        """What a trial occupies, as "2 × 1 GPU and 6 CPU"."""
        gpus = f"{self.gpus:g} GPU and " if self.gpus else ""
        fewest = f"{self.min_workers} to " if self.min_workers else ""
        return f"{fewest}{self.workers} × {gpus}{self.cpus:g} CPU"
