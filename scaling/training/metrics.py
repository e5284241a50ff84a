"""Regression metrics from exact sums: they combine over batches and workers without weighting mistakes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Float64
from numpy import ndarray
from torch import Tensor

from scaling.data.bins import SplitBins, bin_numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """How well a split is predicted, in one unit of the label."""

    mae: float
    mae_sem: float
    bias: float
    rmse: float
    r2: float
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Detail:
    """Where a split is predicted well and where badly, in the label's unit.

    Attributes:
        guess_mae: MAE of always answering the training split's mean.
        p90: 90th percentile of |error|, interpolated between order statistics.
        by_snr: As `binned` gives it, over signal to noise.
        by_label: The same over the true label.
    """

    guess_mae: float
    p90: float
    by_snr: list[dict[str, float]]
    by_label: list[dict[str, float]]


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


def gather_rows(mine: Float[Tensor, " share"], *, rank: int, world: int, total: int) -> Float64[Tensor, " row"]:
    """All workers' values in row order, on every worker, where worker `rank` has every `world`-th of `total` rows.

    What is reckoned from them is the same, to the last bit, however many workers there are.
    """
    rows = torch.zeros(total, dtype=torch.float64, device=mine.device)
    rows[rank::world] = mine.double()
    return all_reduce(rows)


def detail(errors: Float64[ndarray, " row"], bins: SplitBins, label_mean: float) -> Detail:
    """Percentile, guess and bins of a whole split's errors, predicted − true, in the label's unit and in row order."""
    return Detail(
        guess_mae=float(np.abs(bins.labels - label_mean).mean()),
        p90=float(np.quantile(np.abs(errors), 0.9)),
        by_snr=binned(errors, bins.snr, bins.snr_edges),
        by_label=binned(errors, bins.labels, bins.label_edges),
    )


def binned(
    errors: Float64[ndarray, " row"], values: Float64[ndarray, " row"], edges: Float64[ndarray, " edge"]
) -> list[dict[str, float]]:
    """Errors by bins of a value: {low, high, count, mae_dex, bias_dex, rmse_dex} of each bin that has rows.

    A bin's MAE has the standard error sqrt((rmse² − mae²)/(count − 1)).
    """
    number = bin_numbers(values, edges)
    counts, absolute, signed, square = (
        np.bincount(number, weights, len(edges) - 1) for weights in (None, np.abs(errors), errors, errors**2)
    )
    return [
        {
            "low": float(edges[k]),
            "high": float(edges[k + 1]),
            "count": int(counts[k]),
            "mae_dex": float(absolute[k] / counts[k]),
            "bias_dex": float(signed[k] / counts[k]),
            "rmse_dex": math.sqrt(square[k] / counts[k]),
        }
        for k in np.flatnonzero(counts)
    ]
