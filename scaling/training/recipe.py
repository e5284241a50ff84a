"""The recipe: fixed rules for optimiser, schedule, precision and budget that turn a rung into a training run."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from scaling.errors import UserError
from scaling.parse import Count, Fraction, Positive, declared
from scaling.training.schedule import Schedule

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
HALF: tuple[Precision, ...] = ("bf16", "fp16")
Compiled = bool | Literal["reduce-overhead"]
Beta = Annotated[float, Field(ge=0, lt=1)]


@declared
class Budget:
    """Training length: passes over the D spectra (`epochs`), or spectra drawn whatever D is (`samples`).

    With `samples`, every cell trains equally long, and the D axis isolates the number of distinct spectra. With
    `epochs`, training grows with D, and the curve over D shows both effects.
    """

    epochs: Count | None = None
    samples: Count | None = None

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.samples is None):
            raise UserError(f"Budget(epochs={self.epochs}, samples={self.samples}): give exactly one of the two")

    @property
    def kind(self) -> Literal["epochs", "samples"]:
        """Which of the two is fixed; stored in the row."""
        return "epochs" if self.epochs is not None else "samples"

    def steps(self, num_spectra: int, batch_size: int) -> int:
        """Optimiser steps over `num_spectra` spectra; the last batch of an epoch may be short."""
        per_epoch = math.ceil(num_spectra / batch_size)
        if self.epochs is not None:
            return self.epochs * per_epoch
        assert self.samples is not None
        whole_epochs, rest = divmod(self.samples, num_spectra)
        return whole_epochs * per_epoch + math.ceil(rest / batch_size)


@declared
class Recipe:
    """All training settings shared by all cells. The defaults are the original study's.

    The learning rate is not included: it is searched per cell. `evaluations` validation passes are spread evenly
    over the run, the last at its end; each also writes a checkpoint. `loss` is in normalised label units; "huber" has
    its corner at `huber_delta`. `precision` is that of matrix products: "fp32"; "tf32", where GPUs round the factors to 10
    mantissa bits and CPUs do not; "bf16" and "fp16" by autocast, which keeps weights, their sums and the loss in float32.

    `schedule` "cosine" decays from the learning rate to `final_lr_fraction` of it, after a linear `warmup` (a fraction of
    all steps); it is updated once an epoch (as in the original) or at each step. "wsd" (warm-up, stable, decay)
    keeps the full rate until the last `decay` of the run. It can also produce results of shorter budgets: `branches`
    are fractions of the budget, and at each the run forks, decays over the last `decay` of that shorter budget, and
    is scored like a run of that budget; the warm-up is then a fraction of the shortest. Only weights from a decay are
    results.
    """

    budget: Budget
    batch_size: Count = 256
    loss: Literal["l1", "mse", "huber"] = "l1"
    huber_delta: Positive = 1.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    clip_norm: Positive = 0.5
    schedule: Literal["cosine", "constant", "wsd"] = "cosine"
    schedule_unit: Literal["epoch", "step"] = "epoch"
    warmup: Fraction = 0.0
    decay: Fraction = 0.2
    branches: tuple[float, ...] = ()
    final_lr_fraction: Fraction = 1 / 30
    precision: Precision = "fp16"
    evaluations: Count = 200

    def __post_init__(self) -> None:
        if self.schedule == "wsd" and (self.decay == 0 or self.warmup + self.decay > 1):
            raise UserError(
                f"Recipe(warmup={self.warmup}, decay={self.decay}): with schedule='wsd' decay must be positive and their sum at most 1"
            )
        if self.branches and self.schedule != "wsd":
            raise UserError(f"Recipe.branches = {self.branches}: only schedule='wsd' can branch, not {self.schedule!r}")
        if any(not 0 < share < 1 for share in self.branches) or list(self.branches) != sorted(set(self.branches)):
            raise UserError(f"Recipe.branches = {self.branches}: give fractions of the budget between 0 and 1, rising")

    @property
    def shares(self) -> tuple[float, ...]:
        """Budgets for which a trial gives results, as fractions of the whole budget, which is the last."""
        return (*self.branches, 1.0)

    def runs(self, num_spectra: int) -> tuple[Schedule, ...]:
        """The schedule of each share's run, in ascending order."""
        per_epoch = math.ceil(num_spectra / self.batch_size)
        whole = self.budget.steps(num_spectra, self.batch_size)
        totals = [max(1, round(share * whole)) for share in self.shares]
        return tuple(
            Schedule(
                kind=self.schedule,
                total=total,
                warmup=round(self.warmup * totals[0]),
                fork=total - max(1, round(self.decay * total)),
                final=self.final_lr_fraction,
                unit=per_epoch if self.schedule_unit == "epoch" else 1,
            )
            for total in totals
        )

    def evaluation_steps(self, run: Schedule) -> frozenset[int]:
        """Numbers of completed steps after which the validation split is scored, including the run's last.

        The decay of a "wsd" run has its own, so that a branch is scored at the steps of a run of that budget.
        """
        if run.kind != "wsd":
            return _spread(0, run.total, self.evaluations)
        in_decay = max(1, round(self.decay * self.evaluations))
        return _spread(0, run.fork, self.evaluations - in_decay) | _spread(run.fork, run.total, in_decay)


def _spread(after: int, last: int, count: int) -> frozenset[int]:
    """Up to `count` evenly spaced numbers in (after, last], including `last` if there are any."""
    length = last - after
    count = min(count, length)
    return frozenset(after + math.ceil(length * (i + 1) / count) for i in range(count))


def samples_seen(steps: int, num_spectra: int, batch_size: int) -> int:
    """Spectra drawn in `steps` steps, with short batches counted at their actual size."""
    epochs, rest = divmod(steps, math.ceil(num_spectra / batch_size))
    return epochs * num_spectra + min(rest * batch_size, num_spectra)
