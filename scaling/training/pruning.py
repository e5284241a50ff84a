"""When a trial is hopeless beside its cell's best one, and is stopped early."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass

from scaling.errors import UserError

AFTER = 0.5
"""Fraction of the budget before which nothing is judged: a high rate is behind until it decays."""
MARGIN = 1.25
"""The best error so far may be so many times the rival's at the same step. `python -m benchmarks.search` has what this costs and saves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hopeless:
    """The best validation error of the rival up to each of its steps. Both trials are of one cell: same steps, same spectra."""

    rival: str
    first_step: int
    best: dict[int, float]

    @classmethod
    def beside(cls, rival: str, curve: str, score: str, total_steps: int) -> Hopeless:
        """The rule, from the rival's curve as CSV with the columns "step" and `score`.

        Raises:
            UserError: it is no such curve.
        """
        best, lowest = {}, math.inf
        try:
            for point in csv.DictReader(io.StringIO(curve)):
                lowest = min(lowest, float(point[score]))
                best[int(point["step"])] = lowest
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{rival}/progress.csv: no curve of {score} ({error}): remove this file, or its folder"
            ) from error
        return cls(rival=rival, first_step=math.ceil(AFTER * total_steps), best=best)

    def reason(self, step: int, best: float) -> str:
        """Why a trial of this best error so far is stopped after so many steps; empty if it is not."""
        if step < self.first_step or step not in self.best or best <= MARGIN * self.best[step]:
            return ""
        return f"stopped at step {step}: its best error so far is {best / self.best[step]:.2f} times that of {self.rival} there"
