"""Metrics from exact sums, which combine correctly over batches and workers of unequal size."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Float64
from numpy import ndarray
from torch import Tensor
from torch.nn import functional

from scaling.data.batches import SplitBins, bin_numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Regression scores of a split, in one unit of the label."""

    mae: float
    mae_sem: float
    bias: float
    rmse: float
    r2: float
    count: int

    @property
    def error(self) -> float:
        """The error by which trials are selected."""
        return self.mae


@dataclass(frozen=True, slots=True, kw_only=True)
class Classified:
    """Classification scores of a split; both are NaN if a prediction is not finite.

    Attributes:
        error_rate: Fraction of misclassified spectra, over all noise draws.
        cross_entropy: Mean of −log of the probability assigned to the true class, in nats.
        count: Number of spectra.
    """

    error_rate: float
    cross_entropy: float
    count: int

    @property
    def error(self) -> float:
        """The error by which trials are selected."""
        return self.error_rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Detail:
    """Further error statistics of a split, in the label's unit.

    Attributes:
        guess_mae: MAE of always predicting the training split's mean.
        p90: 90th percentile of |error|, interpolated between order statistics.
        by_snr: Result of `binned` over signal to noise.
        by_label: Result of `binned` over the true label.
    """

    guess_mae: float
    p90: float
    by_snr: list[dict[str, float]]
    by_label: list[dict[str, float]]


def error_sums(
    predicted: Float[Tensor, "draw batch label"], target: Float[Tensor, "batch label"]
) -> Float64[Tensor, "label 7"]:
    """Count, Σ⟨|e|⟩, Σ⟨|e|⟩², Σ⟨e²⟩, Σ⟨e⟩, Σy and Σy² of a batch, in float64, for e = predicted − target.

    ⟨⟩ is the mean over noise draws.

    Sums and counts, not means, so that workers and batches of unequal size combine exactly.
    """
    error, target = predicted.double() - target.double(), target.double()
    size = error.abs().mean(dim=0)
    columns = (torch.ones_like(target), size, size.square(), error.square().mean(dim=0), error.mean(dim=0), target)
    return torch.stack([values.sum(dim=0) for values in (*columns, target.square())], dim=1)


def class_sums(logits: Float[Tensor, "draw batch"], target: Float[Tensor, " batch"]) -> Float64[Tensor, " 3"]:
    """Count, Σ⟨wrong⟩ and Σ⟨cross-entropy⟩ of a batch, in float64; ⟨⟩ over noise draws, `target` is 0 or 1."""
    logits, truth = logits.double(), target.double().expand(logits.shape)
    wrong = ((logits > 0) != (truth > 0.5)).double().mean(dim=0)
    entropy = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(dim=0)
    return torch.stack((torch.ones_like(wrong).sum(), wrong.sum(), entropy.sum()))


def all_reduce(sums: Tensor) -> Tensor:
    """Sum over all workers, in place; unchanged for a single worker."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(sums)
    return sums


def scores(sums: Float64[Tensor, " 7"], unit: float = 1.0) -> Scores:
    """Convert `error_sums` of one normalised label to scores; `unit` converts them to the label's own unit.

    `mae_sem` is the standard error of the MAE over the finite split: for n spectra whose errors aᵢ are each the mean of |e|
    over the noise draws, sqrt((Σaᵢ²/n − (Σaᵢ/n)²)/(n − 1)). R² = 1 − Σe²/Σ(y − ȳ)² has no unit.
    """
    count, absolute, spread_sum, square, signed, label, label_square = (float(value) for value in sums)
    mae, mse = absolute / count, square / count
    spread = label_square - label * label / count
    return Scores(
        mae=unit * mae,
        mae_sem=unit * math.sqrt(max(0.0, spread_sum / count - mae * mae) / max(1.0, count - 1)),
        bias=unit * signed / count,
        rmse=unit * math.sqrt(mse),
        r2=1.0 - square / spread if spread > 0 else math.nan,
        count=int(count),
    )


def classified(sums: Float64[Tensor, " 3"]) -> Classified:
    """Convert `class_sums` to scores; for one draw, an error rate p has the standard error sqrt(p(1 − p)/count)."""
    count, wrong, entropy = (float(value) for value in sums)
    finite = math.isfinite(entropy)
    return Classified(
        error_rate=wrong / count if finite else math.nan,
        cross_entropy=entropy / count if finite else math.nan,
        count=int(count),
    )


def gather_rows(
    mine: Float[Tensor, "*draw share"], *, rank: int, world: int, total: int
) -> Float64[Tensor, "*draw row"]:
    """Gather all workers' values in row order on every worker; worker `rank` holds every `world`-th of `total` rows.

    Results computed from them are bit-identical for any number of workers.
    """
    rows = torch.zeros(*mine.shape[:-1], total, dtype=torch.float64, device=mine.device)
    rows[..., rank::world] = mine.double()
    return all_reduce(rows)


def detail(errors: Float64[ndarray, "draw row"], bins: SplitBins, label_mean: float) -> Detail:
    """Percentile (over all draws), guess and bins of a whole split's errors (predicted − true), in the label's unit."""
    return Detail(
        guess_mae=float(np.abs(bins.labels - label_mean).mean()),
        p90=float(np.quantile(np.abs(errors), 0.9)),
        by_snr=binned(errors, bins.snr, bins.snr_edges),
        by_label=binned(errors, bins.labels, bins.label_edges),
    )


def binned(
    errors: Float64[ndarray, "draw row"], values: Float64[ndarray, " row"], edges: Float64[ndarray, " edge"]
) -> list[dict[str, float]]:
    """Errors binned by a value: {low, high, count, mae_dex, bias_dex, rmse_dex, sem_dex} of each non-empty bin.

    `sem_dex` is the standard error of the bin's MAE over its spectra, as in `scores`.
    """
    number, size = bin_numbers(values, edges), np.abs(errors).mean(axis=0)
    columns = (None, size, errors.mean(axis=0), (errors**2).mean(axis=0), size**2)
    counts, absolute, signed, square, size_square = (np.bincount(number, each, len(edges) - 1) for each in columns)
    return [
        {
            "low": float(edges[k]),
            "high": float(edges[k + 1]),
            "count": int(n := counts[k]),
            "mae_dex": float(mae := absolute[k] / n),
            "bias_dex": float(signed[k] / n),
            "rmse_dex": math.sqrt(square[k] / n),
            "sem_dex": math.sqrt(max(0.0, size_square[k] / n - mae * mae) / max(1, n - 1)),
        }
        for k in np.flatnonzero(counts)
    ]
