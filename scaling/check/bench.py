"""Shared setup of the device checks: a study's rungs without randomness, on synthetic spectra with learnable labels."""

from __future__ import annotations

import dataclasses
from typing import get_args

import torch

from scaling.model.ladder import Ladder
from scaling.study.declaration import Budget, Data, Recipe, Search, Simulation, Study
from scaling.sweep.timing import MadeUp
from scaling.training.recipe import Compiled, Precision
from scaling.training.step import Stepper

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
ROWS = 32
"""Batch size for numerical comparisons, small because a CPU computes the reference."""
FP16_SCALE = 2.0**10
"""Initial loss scale. With the usual 2¹⁶ fp16 skips some first steps, and then lags behind fp32."""
LR_BY_WIDTH = 0.016
"""Learning rate times width: rungs of width 8 to 128 learn within 50 steps, yet stay stable enough to be compared."""


def default_study(*, gpu: bool) -> Study:
    """The default rungs to check: on full-size spectra on a GPU, small ones on a CPU."""
    ladder, widths, rows = (
        (Ladder(), (32, 128, 256), 256) if gpu else (Ladder(num_pixels=1024, patch_size=128), (8, 16, 32), 64)
    )
    return Study(
        name="check",
        question="Does this cluster compute what it should?",
        data=Data(source=Simulation(train=rows, val=rows, test=rows, pixels=ladder.num_pixels), num_spectra=(rows,)),
        ladder=ladder,
        widths=widths,
        recipe=Recipe(budget=Budget(epochs=1), batch_size=rows, schedule="constant"),
        search=Search(),
    )


class Bench:
    """One device, and steppers on it that differ in one respect at a time.

    Attributes:
        device: The device.
        study: The study whose rungs are checked.
        widths: Its smallest, middle and largest rung.
        precisions: Precisions available on the device; TF32 is for GPUs only.
    """

    def __init__(self, study: Study, device: torch.device) -> None:
        self.device, self.study = device, study
        self.widths = sorted({study.widths[0], study.widths[len(study.widths) // 2], study.widths[-1]})
        self.precisions = [each for each in PRECISIONS if each != "tf32" or device.type == "cuda"]
        # Dropout and fresh noise draw different numbers on every kind of device.
        self._quiet = dataclasses.replace(
            study,
            ladder=dataclasses.replace(study.ladder, dropout=0.0, attention_dropout=0.0, whitening=None),
            data=dataclasses.replace(study.data, rules=dataclasses.replace(study.data.rules, noise="fixed")),
        )

    @property
    def middle(self) -> int:
        """The width of the middle rung."""
        return self.widths[len(self.widths) // 2]

    def stepper(
        self,
        width: int,
        precision: Precision = "fp32",
        *,
        device: torch.device | None = None,
        rank: int = 0,
        world: int = 1,
        compiled: Compiled = False,
    ) -> Stepper:
        """A rung with the same weights and batches on every device; on the bench's device by default."""
        study = self._quiet
        recipe = dataclasses.replace(
            study.recipe, precision=precision, batch_size=ROWS, schedule="constant", warmup=0.0, branches=()
        )
        batches = MadeUp(study, ROWS, device or self.device, rank, world)
        classify = study.data.rules.boundary is not None
        lr = LR_BY_WIDTH / width
        stepper = Stepper(study.model(width), recipe, batches, lr=lr, seed=0, classify=classify, compiled=compiled)
        if stepper.scaler.is_enabled():
            stepper.scaler.load_state_dict(stepper.scaler.state_dict() | {"scale": FP16_SCALE})
        return stepper


def losses(stepper: Stepper, steps: range) -> list[float]:
    """The training loss of each step; NaN where fp16 skipped the step."""
    (run,), found = stepper.recipe.runs(10**6), []
    for step in steps:
        stepper.step(step, run)
        loss = stepper.mean_loss()
        found.append(float("nan") if loss is None else loss)
    return found
