"""Ridge regression by normal equations, accumulated in one pass over the shards for all numbers of spectra."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Float32, Float64
from numpy import ndarray

from scaling.baselines.fitted import Fitted, answers
from scaling.baselines.spectra import blocks
from scaling.data.batches import DataRules, EvaluationSplit
from scaling.data.batches.moments import Moments
from scaling.data.shards.manifest import Manifest
from scaling.training.evaluate import score

PENALTIES = np.geomspace(1e-9, 1.0, 37)
"""Candidate L2 penalties, as fractions of the covariance's largest eigenvalue."""


def fit_ridge(manifest: Manifest, rules: DataRules, sizes: Sequence[int], val: EvaluationSplit) -> Iterator[Fitted]:
    """Yield the fit to each of the ascending numbers of training spectra.

    With the covariance C of the standardised noisy flux and its covariance c with the normalised labels, the weights are
    (C + α)⁻¹ c (Hoerl & Kennard 1970, eq. 2.1, per spectrum and with the means removed), from the eigenvalues of C for all α.
    With fresh noise C is its expectation over the noise.

    Raises:
        UserError: A shard is damaged, or a label is not finite.
    """
    moments, left, begun = (
        Moments(manifest, rules, torch.device("cpu"), len(rules.labels)),
        list(sizes),
        time.monotonic(),
    )
    for block in blocks(manifest, rules, sizes):
        moments.add(block.flux, block.error, block.labels)
        if moments.rows == left[0]:
            yield _fit(moments, val, begun)
            left.pop(0)


def _fit(moments: Moments, val: EvaluationSplit, begun: float) -> Fitted:
    """Fit with the penalty that has the smallest error on the validation split."""
    mean, covariance = moments.standardised()
    label_mean, product = moments.with_labels()
    values, vectors = torch.linalg.eigh(covariance)
    values, rotated = values.clamp(min=0.0), vectors.T @ torch.from_numpy(product)
    middle = 0.5 if val.rules.boundary is not None else 0.0
    pixels, outputs = product.shape
    best, chosen = np.inf, None
    for penalty in PENALTIES * float(values[-1]):
        weights = (vectors @ (rotated / (values + penalty)[:, None])).numpy()
        predict = partial(_predict, weights, label_mean - mean.numpy() @ weights - middle)
        error = score(answers(predict, val), val)[0].error
        if error < best:
            best, chosen = error, (predict, penalty)
    assert chosen is not None
    return Fitted(
        predict=chosen[0],
        num_spectra=moments.rows,
        num_params=(pixels + 1) * outputs,
        steps=0,
        samples_seen=moments.rows,
        train_flops=2.0 * moments.rows * pixels * (pixels + outputs),
        lr=np.nan,
        penalty=float(chosen[1]),
        seconds=time.monotonic() - begun,
    )


def _predict(
    weights: Float64[ndarray, "pixel label"], bias: Float64[ndarray, " label"], flux: Float32[ndarray, "row pixel"]
) -> Float64[ndarray, "row label"]:
    return flux @ weights + bias
