"""Predictions and scores of a split, over all workers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scaling.data.dataset import EvaluationSplit
from scaling.training.metrics import all_reduce, error_sums
from scaling.training.recipe import Precision

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Mixed precision on this device."""
    dtype = AUTOCAST[precision]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def evaluate(model: nn.Module, split: EvaluationSplit, precision: Precision) -> Tensor:
    """Error sums (`metrics.error_sums`) of a split over all workers, in normalised label units."""
    return all_reduce(error_sums(predict(model, split, precision), split.labels))


def predict(model: nn.Module, split: EvaluationSplit, precision: Precision, batch_size: int = 1024) -> Tensor:
    """Predicted labels (row,) of this worker's share of a split, normalised."""
    model.eval()
    predicted = torch.empty_like(split.labels)
    with torch.inference_mode(), autocast(split.flux.device, precision):
        for start in range(0, len(split.flux), batch_size):
            predicted[start : start + batch_size] = model(split.flux[start : start + batch_size])[:, 0]
    model.train()
    return predicted
