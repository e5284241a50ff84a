"""A fitted baseline, and its predictions for scoring, as for a trial of a Transformer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32
from numpy import ndarray
from torch import Tensor

from scaling.data.batches import EvaluationSplit

Predict = Callable[[Float32[ndarray, "row pixel"]], Float[ndarray, "row label"]]
"""Maps standardised noisy flux to normalised labels; a classification's are positive above the boundary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """A baseline fitted to the first `num_spectra` training spectra.

    Attributes:
        predict: The prediction function.
        num_spectra: Number of distinct training spectra.
        num_params: Number of fitted parameters.
        steps: Number of trees, or 0.
        samples_seen: Number of training samples, counting each noise draw.
        train_flops: FLOPs of the fit; NaN if it is not matrix arithmetic.
        lr: Learning rate (shrinkage) of the trees; NaN if there is none.
        penalty: The L2 penalty.
        seconds: Duration of the fit.
    """

    predict: Predict
    num_spectra: int
    num_params: int
    steps: int
    samples_seen: int
    train_flops: float
    lr: float
    penalty: float
    seconds: float


def answers(predict: Predict, split: EvaluationSplit) -> Float[Tensor, "draw row label"]:
    """Predictions of a baseline on a split, for each of its noise draws."""
    found = [predict(flux.numpy()).reshape(split.labels.shape) for flux in split.draws()]
    return torch.from_numpy(np.stack(found))
