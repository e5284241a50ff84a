"""The learning rate as a pure function of the step, so that resuming needs no state."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The learning rate of one run over `total` steps, as a fraction of the trial's.

    After `warmup` steps of linear increase: "constant" stays; "cosine" decays to `final` over the rest, updated every
    `unit` steps (Loshchilov & Hutter 2017, arXiv 1608.03983); "wsd" stays until `fork`, then decays to `final` as
    1 − √(progress) (warm-up, stable, decay: Hägele et al. 2024, arXiv 2405.18392).
    """

    kind: Literal["cosine", "constant", "wsd"]
    total: int
    warmup: int
    fork: int
    final: float
    unit: int = 1

    def selects(self, step: int) -> bool:
        """Whether the weights after `step` steps may be a run's result; for "wsd" only during the decay."""
        return self.kind != "wsd" or step > self.fork

    def factor(self, step: int) -> float:
        """The learning rate of a step (counted from 0) as a fraction of the trial's."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.kind == "cosine":
            done = (step - self.warmup) // self.unit * self.unit
            progress = min(1.0, done / max(1, self.total - self.warmup))
            return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))
        if self.kind == "wsd" and step >= self.fork:
            progress = (step - self.fork) / (self.total - self.fork)
            return self.final + (1 - self.final) * (1 - math.sqrt(progress))
        return 1.0
