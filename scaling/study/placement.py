"""Resources of a trial, and how its workers take a step."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from scaling.errors import UserError
from scaling.parse import Count, Natural, Positive, declared
from scaling.training.recipe import Compiled


@declared
class Placement:
    """Resources of trials from this width and number of spectra up. The last applicable placement is used.

    `gpus` can be a fraction: such trials share a device, each in its own process. A trial with several workers or
    whole GPUs runs under Ray Train; with `min_workers` it continues with fewer if a lost one is not replaced.
    `micro_batch` limits the spectra per forward pass of a worker. `compiled` uses `torch.compile`, with CUDA graphs if
    "reduce-overhead", for rungs whose steps are limited by kernel launches. `deterministic` makes GPU runs bit-identical,
    but slower; CPU runs always are.
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
        """The resources as text, such as "2 × 1 GPU and 6 CPU"."""
        gpus = f"{self.gpus:g} GPU and " if self.gpus else ""
        fewest = f"{self.min_workers} to " if self.min_workers else ""
        return f"{fewest}{self.workers} × {gpus}{self.cpus:g} CPU"
