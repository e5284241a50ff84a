"""How spectra become inputs and targets: the rules, and the statistics used for normalisation."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float32, Float64
from numpy import ndarray
from pydantic import Field
from torch import Tensor

from scaling.data.shards.manifest import Manifest
from scaling.errors import UserError
from scaling.files import Location
from scaling.parse import Count, Name, Natural, declared

Noise = Literal["fixed", "fresh"]
READ_ROWS = 4096


@declared
class DataRules:
    """How spectra become inputs and targets; the same for all cells of a study.

    `noise` "fixed" draws one noise realisation per spectrum, as a survey observes each star once; "fresh" draws a new
    one at every visit, as the original study does. `noise_level` multiplies the 1σ errors. Validation and test noise
    is drawn once from `eval_seed`. `input_norm` standardises the noisy flux with statistics of the training split:
    "none" (the original), "global" (one mean, one scale), "mean_spectrum" (each pixel's mean, one scale), "per_pixel".
    `label_norm` maps the labels to mean 0 and std 1, or to [0, 1].

    `label` is the study's target: trials are selected and judged by it. `other_labels` are learned jointly, with
    equal weight in the loss. A `boundary`, in the label's unit, makes the task a classification: the model predicts whether
    the label is above it, is trained on binary cross-entropy, and is selected and judged by its error rate.
    With several `eval_draws`, validation and test spectra are scored under that many noise draws; the first is the
    one used with a single draw.
    """

    label: Name = "log_g"
    other_labels: tuple[Name, ...] = ()
    boundary: float | None = None
    noise: Noise = "fresh"
    noise_level: Annotated[float, Field(ge=0)] = 1.0
    noise_seed: Natural = 0
    eval_seed: Natural = 42
    eval_draws: Count = 1
    input_norm: Literal["none", "global", "mean_spectrum", "per_pixel"] = "mean_spectrum"
    label_norm: Literal["standard", "minmax"] = "standard"

    def __post_init__(self) -> None:
        """Check that the fields are consistent.

        Raises:
            UserError: Names the field, its value and the remedy.
        """
        if self.eval_draws > 1 and self.noise_level == 0:
            raise UserError(f"DataRules.eval_draws = {self.eval_draws}: must be 1 without noise (noise_level 0)")
        if len(set(self.labels)) < len(self.labels):
            raise UserError(
                f"DataRules.other_labels = {self.other_labels!r}: give each label once, and {self.label!r} not again"
            )
        if self.boundary is not None and (self.other_labels or self.label_norm != "standard"):
            raise UserError(
                f"DataRules.boundary = {self.boundary}: a classification has one label and no label_norm; "
                "drop other_labels and label_norm, or the boundary"
            )

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels in the order of the model's outputs; the study's label is first."""
        return (self.label, *self.other_labels)

    @property
    def target(self) -> str:
        """The predicted quantity in words: "log_g", or "log_g > 2.5"."""
        return self.label if self.boundary is None else f"{self.label} > {self.boundary:g}"

    @property
    def score(self) -> Literal["mae_dex", "error_rate"]:
        """The metric for selecting and judging trials: the row's column after "val_" and "test_"."""
        return "mae_dex" if self.boundary is None else "error_rate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Standardisation:
    """Statistics of the training split that normalise inputs and labels; stored in the checkpoint.

    Label statistics are in the labels' own units, in the order of `DataRules.labels`. With a `boundary`, labels become
    1 above it and 0 elsewhere, and offset and scale are unused.
    """

    flux_offset: Float32[ndarray, " pixel"]
    flux_scale: Float32[ndarray, " pixel"]
    label_offset: Float64[ndarray, " label"]
    label_scale: Float64[ndarray, " label"]
    label_mean: Float64[ndarray, " label"]
    label_std: Float64[ndarray, " label"]
    boundary: float | None = None

    @classmethod
    def of(cls, shards: Location, rules: DataRules) -> Standardisation:
        """Read the statistics of a shard set and reduce them as the rules specify.

        Raises:
            UserError: A label is unknown, constant in the training split, or all on one side of the boundary.
        """
        manifest = Manifest.load(shards)
        for name in rules.labels:
            if not (std := manifest.label(name).std) > 0:
                raise UserError(f"{shards}: label {name!r} has std {std} in the training split; nothing to learn")
        labels = [manifest.labels[name] for name in rules.labels]
        if rules.boundary is not None and not labels[0].min <= rules.boundary < labels[0].max:
            raise UserError(
                f"DataRules.boundary = {rules.boundary:g}: every {rules.label} in {shards} is on one side of it "
                f"({labels[0].min:g} to {labels[0].max:g}); nothing to learn"
            )
        pixels = manifest.pixel_statistics()
        mean = pixels["flux_mean"]
        variance = pixels["flux_std"] ** 2 + (rules.noise_level * pixels["error_rms"]) ** 2
        if rules.input_norm == "none":
            offset, scale = np.zeros_like(mean), np.ones_like(mean)
        elif rules.input_norm == "global":
            offset = np.full_like(mean, mean.mean())
            scale = np.full_like(mean, math.sqrt(float(np.mean(variance + (mean - mean.mean()) ** 2))))
        elif rules.input_norm == "mean_spectrum":
            offset, scale = mean, np.full_like(mean, math.sqrt(float(variance.mean())))
        else:
            offset, scale = mean, np.sqrt(variance)
        minmax = rules.label_norm == "minmax"
        return cls(
            flux_offset=offset.astype(np.float32),
            flux_scale=scale.astype(np.float32),
            label_offset=np.array([label.min if minmax else label.mean for label in labels]),
            label_scale=np.array([label.max - label.min if minmax else label.std for label in labels]),
            label_mean=np.array([label.mean for label in labels]),
            label_std=np.array([label.std for label in labels]),
            boundary=rules.boundary,
        )

    def flux_on(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        """A function that standardises flux (row, pixel) in place on a device."""
        offset, scale = (torch.from_numpy(array).to(device) for array in (self.flux_offset, self.flux_scale))
        return lambda flux: flux.sub_(offset).div_(scale)

    def digest(self) -> str:
        """A short hash of the statistics, which are those of the whole training split, not of a cell's prefix."""
        labels = np.stack([self.label_offset, self.label_scale, self.label_mean, self.label_std], axis=1)
        content = self.flux_offset.tobytes() + self.flux_scale.tobytes() + labels.tobytes()
        return hashlib.sha256(content).hexdigest()[:16]

    def normalise_labels(self, labels: Float[ndarray, "row label"]) -> Float32[ndarray, "row label"]:
        """Convert labels from their own units to those of the loss; to 0 and 1 with a boundary."""
        if self.boundary is not None:
            return (labels > self.boundary).astype(np.float32)
        return ((labels - self.label_offset) / self.label_scale).astype(np.float32)


def read_labels(params: pd.DataFrame, labels: tuple[str, ...], where: str) -> Float64[ndarray, "row label"]:
    """Read label columns, in the labels' own units.

    Raises:
        UserError: A column is missing or not finite; names the first offending row.
    """
    for label in labels:
        if label not in params:
            raise UserError(f"{where}: no label {label!r}")
        bad = np.flatnonzero(~np.isfinite(params[label].to_numpy(np.float64)))
        if len(bad):
            raise UserError(
                f"{where}: label {label!r} is not finite in {len(bad)} rows, first in row {bad[0]}; remove them"
            )
    return params[list(labels)].to_numpy(np.float64)
