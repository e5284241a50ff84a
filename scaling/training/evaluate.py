"""Predictions and scores of a split, over all workers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scaling.console import Count, uncounted
from scaling.data.batches import EvaluationSplit, SplitBins
from scaling.files import Location
from scaling.training.metrics import (
    Classified,
    Detail,
    Scores,
    all_reduce,
    class_sums,
    classified,
    detail,
    error_sums,
    gather_rows,
    scores,
)
from scaling.training.recipe import Precision

EVALUATION_ROWS = 1024
"""Spectra scored per forward pass."""
AUTOCAST = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Mixed-precision context; also enables TF32 for float32 products process-wide for "tf32", else disables it."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    dtype = AUTOCAST[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def predict(
    model: nn.Module,
    split: EvaluationSplit,
    precision: Precision,
    batch_size: int = EVALUATION_ROWS,
    progress: Count = uncounted,
) -> Tensor:
    """Model outputs (draw, row, label) for this worker's share of a split: normalised labels, or logits.

    `progress` is called with (spectra scored, total spectra), counted over all draws.
    """
    model.eval()
    predicted = torch.empty(split.rules.eval_draws, *split.labels.shape, device=split.labels.device)
    with torch.inference_mode(), autocast(split.worker.device, precision):
        for draw, flux in enumerate(split.draws()):
            for start in range(0, len(flux), batch_size):
                part = flux[start : start + batch_size].to(split.worker.device, non_blocking=True)
                predicted[draw, start : start + batch_size] = model(part)
                progress(draw * len(flux) + start + len(part), predicted.shape[0] * len(flux))
    model.train()
    return predicted


def score(predicted: Tensor, split: EvaluationSplit) -> tuple[Scores | Classified, list[Scores]]:
    """Scores of all workers' predictions: for the study's label, and for the others, each in its own unit."""
    if split.rules.boundary is not None:
        return classified(all_reduce(class_sums(predicted[..., 0], split.labels[:, 0]))), []
    sums = all_reduce(error_sums(predicted, split.labels))
    units = split.standardisation.label_scale.tolist()
    first, *others = (scores(each, unit=unit) for each, unit in zip(sums, units, strict=True))
    return first, others


def score_detail(predicted: Tensor, split: EvaluationSplit, shards: Location, name: str = "test") -> Detail | None:
    """Binned error statistics of the study's label on the split `name`, over all workers; None for a classification."""
    if split.rules.boundary is not None:
        return None
    standardisation = split.standardisation
    bins = SplitBins.load(shards, split.rules.label, name, split.worker)
    errors = float(standardisation.label_scale[0]) * (predicted[..., 0].double() - split.labels[:, 0].double())
    errors = gather_rows(errors, rank=split.worker.rank, world=split.worker.world, total=len(bins.snr))
    return detail(errors.cpu().numpy(), bins, float(standardisation.label_mean[0]))
