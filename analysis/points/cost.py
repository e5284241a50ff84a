"""The cost of a run: training compute as a function of N and D."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.laws import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Training compute, C = flops_per_param_sample · N · epochs · D.

    Attributes:
        flops_per_param_sample: Floating-point operations per parameter and sample seen; NaN where compute does not
            depend on D.
        words: The origin of the cost, or why it is undefined.
        epochs: Number of passes over the samples.
    """

    flops_per_param_sample: float
    words: str
    epochs: float = 1.0

    @property
    def defined(self) -> bool:
        """Whether compute grows with D, so that N and D compete for it."""
        return bool(np.isfinite(self.per_cell))

    @property
    def per_cell(self) -> float:
        """κ in C = κ N D."""
        return self.flops_per_param_sample * self.epochs


SIX_N_D = Cost(
    flops_per_param_sample=6.0,
    words="C = 6 N D, the usual estimate for a dense Transformer that sees each sample once "
    "(Kaplan et al. 2020, arXiv 2001.08361, section 2.1)",
)


def study_cost(cells: pd.DataFrame) -> Cost:
    """The cost of a run in one of this project's studies, from `train_flops` of its cells.

    Undefined where the budget is a number of samples: every cell then trains equally long, whatever its D.
    """
    kinds = sorted(cells["budget"].astype(str).unique())
    if kinds != ["epochs"]:
        return Cost(
            flops_per_param_sample=float("nan"),
            words="The training budget is a number of samples seen, so that compute does not depend on D: more spectra "
            "cost no compute, and no compute-optimal path over D is defined.",
        )
    seen = cells["samples_seen"].to_numpy(float)
    epochs = float(np.median(seen / cells["num_spectra"].to_numpy(float)))
    ratio = cells["train_flops"].to_numpy(float) / (cells["num_params"].to_numpy(float) * seen)
    if not np.all(np.isfinite(ratio) & (ratio > 0)):
        words = f"C = 6 N D times {epochs:g} epochs, since the rows do not state their FLOPs"
        return Cost(flops_per_param_sample=SIX_N_D.flops_per_param_sample, words=words, epochs=epochs)
    return _measured(ratio, epochs, f"C from the rows' FLOPs at {epochs:g} epochs")


def column_cost(N: Array, D: Array, C: Array) -> Cost:
    """The cost of a run from a column of compute: C = κ N D with the median κ."""
    return _measured(C / (N * D), 1.0, "C from the table's column")


def _measured(ratio: Array, epochs: float, words: str) -> Cost:
    kappa, spread = float(np.median(ratio)), float(ratio.max() / ratio.min())
    words = f"{words}: {kappa:.3g} FLOPs for each parameter and sample (median)"
    if spread > 1.02:
        words += f"; it varies by a factor of {spread:.2g} among the rows"
    return Cost(flops_per_param_sample=kappa, words=words, epochs=epochs)
