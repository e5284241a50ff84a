"""Regression metrics from exact sums: they combine over batches and workers without weighting mistakes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Float, Float64
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """How well a split is predicted, in one unit of the label."""

    mae: float
    mae_sem: float
    bias: float
    rmse: float
    r2: float
    count: int


def error_sums(predicted: Float[Tensor, " batch"], target: Float[Tensor, " batch"]) -> Float64[Tensor, " 6"]:
    """Count, Σ|e|, Σe², Σe, Σy and Σy² of a batch, with e = predicted − target, in float64.

    Sums and counts, not means, so that workers and batches of unequal size combine exactly.
    """
    error, target = predicted.double() - target.double(), target.double()
    count = torch.tensor(float(len(error)), dtype=torch.float64, device=error.device)
    return torch.stack(
        (count, error.abs().sum(), error.square().sum(), error.sum(), target.sum(), target.square().sum())
    )


def all_reduce(sums: Tensor) -> Tensor:
    """Add the sums of all workers, in place; a single worker's are returned as they are."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(sums)
    return sums


def scores(sums: Float64[Tensor, " 6"], unit: float = 1.0) -> Scores:
    """Turn sums over z-scored labels into scores; `unit` (dex per z) converts them to dex.

    `mae_sem` is the standard error of the MAE over the finite split, sqrt((⟨e²⟩ − ⟨|e|⟩²)/(n − 1)).
    R² = 1 − Σe²/Σ(y − ȳ)² has no unit.
    """
    count, absolute, square, signed, label, label_square = (float(value) for value in sums)
    mae, mse = absolute / count, square / count
    spread = label_square - label * label / count
    return Scores(
        mae=unit * mae,
        mae_sem=unit * math.sqrt(max(0.0, mse - mae * mae) / max(1.0, count - 1)),
        bias=unit * signed / count,
        rmse=unit * math.sqrt(mse),
        r2=1.0 - square / spread if spread > 0 else math.nan,
        count=int(count),
    )
