"""The recipe: the fixed rules of optimiser, schedule, precision and budget that turn a rung into a training run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from scaling.errors import UserError

Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How long a trial trains: passes over its D spectra (`epochs`), or spectra drawn whatever D is (`samples`).

    With `samples`, every cell trains equally long, and the D axis is the number of distinct spectra alone. With
    `epochs`, training grows with D, and the curve over D shows both.
    """

    epochs: int | None = None
    samples: int | None = None

    def __post_init__(self) -> None:
        """Exactly one of the two is given.

        Raises:
            UserError: otherwise, or if it is not positive.
        """
        if (self.epochs is None) == (self.samples is None):
            raise UserError(f"Budget(epochs={self.epochs}, samples={self.samples}): give exactly one of the two")
        if (self.epochs or self.samples or 0) < 1:
            raise UserError(f"Budget(epochs={self.epochs}, samples={self.samples}): must be at least 1")

    @property
    def kind(self) -> Literal["epochs", "samples"]:
        """Which of the two is fixed; written to the row."""
        return "epochs" if self.epochs is not None else "samples"

    def steps(self, num_spectra: int, batch_size: int) -> int:
        """Optimiser steps over `num_spectra` spectra; the last batch of an epoch may be short."""
        per_epoch = math.ceil(num_spectra / batch_size)
        if self.epochs is not None:
            return self.epochs * per_epoch
        assert self.samples is not None
        whole_epochs, rest = divmod(self.samples, num_spectra)
        return whole_epochs * per_epoch + math.ceil(rest / batch_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything about training that is the same for all cells. The defaults are the original study's.

    The learning rate is not here: it is searched in each cell. `evaluations` validation passes are spread evenly
    over the run, the last at its end; each also writes a checkpoint. `schedule` "cosine" decays from the learning
    rate to `final_lr_fraction` of it, after `warmup` (a fraction of all steps) of linear rise; it moves once an
    epoch (as the original does) or at each step.
    """

    budget: Budget
    batch_size: int = 256
    loss: Literal["l1", "mse"] = "l1"
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float = 0.5
    schedule: Literal["cosine", "constant"] = "cosine"
    schedule_unit: Literal["epoch", "step"] = "epoch"
    warmup: float = 0.0
    final_lr_fraction: float = 1 / 30
    precision: Precision = "fp16"
    evaluations: int = 200

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            UserError: naming the field, its value and the remedy.
        """
        choices: dict[str, tuple[str, ...]] = {
            "loss": ("l1", "mse"),
            "schedule": ("cosine", "constant"),
            "schedule_unit": ("epoch", "step"),
            "precision": ("fp32", "bf16", "fp16"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise UserError(f"Recipe.{name} = {getattr(self, name)!r}: must be one of {', '.join(allowed)}")
        for name in ("batch_size", "evaluations", "clip_norm"):
            if getattr(self, name) <= 0:
                raise UserError(f"Recipe.{name} = {getattr(self, name)}: must be positive")
        for name in ("warmup", "final_lr_fraction"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"Recipe.{name} = {getattr(self, name)}: must be in [0, 1]")

    def lr_factor(self, step: int, total_steps: int, steps_per_epoch: int) -> float:
        """The learning rate of `step` as a fraction of the trial's: a pure function, so that resuming needs no state."""
        warmup_steps = round(self.warmup * total_steps)
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        if self.schedule == "constant":
            return 1.0
        unit = steps_per_epoch if self.schedule_unit == "epoch" else 1
        done = (step - warmup_steps) // unit * unit
        progress = min(1.0, done / max(1, total_steps - warmup_steps))
        return self.final_lr_fraction + (1 - self.final_lr_fraction) * 0.5 * (1 + math.cos(math.pi * progress))

    def evaluation_steps(self, total_steps: int) -> frozenset[int]:
        """Numbers of completed steps after which the validation split is scored; `total_steps` is one of them."""
        count = min(self.evaluations, total_steps)
        return frozenset(math.ceil(total_steps * (i + 1) / count) for i in range(count))


def samples_seen(steps: int, num_spectra: int, batch_size: int) -> int:
    """Spectra drawn in `steps` steps, counting short batches as they are."""
    epochs, rest = divmod(steps, math.ceil(num_spectra / batch_size))
    return epochs * num_spectra + min(rest * batch_size, num_spectra)
