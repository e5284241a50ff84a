"""A fitted baseline, and its scores on a split as a trial of a Transformer is scored."""

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
"""Standardised noisy flux to normalised labels, or to a value above 0 where the label is above the boundary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """A baseline fitted to the first `num_spectra` training spectra.

    Attributes:
        predict: What it answers.
        num_spectra: Distinct training spectra.
        num_params: Numbers that were fitted.
        steps: Trees, or 0.
        samples_seen: Spectra that it was fitted to, noise draws of one counted each.
        train_flops: Of the fit; NaN where it is no arithmetic of matrices.
        lr: Shrinkage of the trees; NaN where there is none.
        penalty: The L2 penalty.
        seconds: What the fit took.
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
    """What a baseline answers on a split, under each of its noise draws."""
    found = [predict(flux.numpy()).reshape(split.labels.shape) for flux in split.draws()]
    return torch.from_numpy(np.stack(found))
