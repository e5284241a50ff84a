"""Early stopping of trials that are hopeless compared with their cell's best one."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass

AFTER = 0.5
"""Fraction of the budget before which no trial is stopped: a high learning rate lags behind until it decays."""
MARGIN = 1.25
"""Maximum ratio of the best error to the rival's at the same step; for its effects see `benchmarks.search`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hopeless:
    """The rival's best validation error up to each of its steps; both trials share a cell, so steps and spectra."""

    rival: str
    first_step: int
    best: dict[int, float]

    @classmethod
    def beside(cls, rival: str, curve: str, score: str, total_steps: int) -> Hopeless | None:
        """Build the rule from the rival's curve, a CSV with the columns "step" and `score`; None if it is damaged."""
        best, lowest = {}, math.inf
        try:
            for point in csv.DictReader(io.StringIO(curve)):
                lowest = min(lowest, float(point[score]))
                best[int(point["step"])] = lowest
        except (KeyError, TypeError, ValueError, csv.Error):
            return None
        return cls(rival=rival, first_step=math.ceil(AFTER * total_steps), best=best)

    def reason(self, step: int, best: float) -> str:
        """Why a trial with this best error so far is stopped at `step`; empty if it continues."""
        if step < self.first_step or step not in self.best or best <= MARGIN * self.best[step]:
            return ""
        return f"stopped at step {step}: its best error so far is {best:.3g}, that of {self.rival} there {self.best[step]:.3g}"
