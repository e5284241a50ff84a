"""How spectra become inputs and targets: the rules, the statistics they are normalised with, the evaluation splits."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from scaling.data.cache import map_split
from scaling.data.manifest import Manifest
from scaling.errors import UserError

Noise = Literal["fixed", "fresh"]
READ_ROWS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class DataRules:
    """How spectra become inputs and targets; the same for all cells of a study.

    `noise` "fixed" draws one noise realisation a spectrum, as a survey observes each star once; "fresh" draws a new
    one at every visit, as the original study does. `noise_level` multiplies the 1σ errors. Validation and test noise
    is drawn once from `eval_seed`. `input_norm` standardises the noisy flux with statistics of the training split:
    "none" (the original), "global" (one mean, one scale), "mean_spectrum" (each pixel's mean, one scale), "per_pixel".
    `label_norm` maps the label to mean 0 and std 1, or to [0, 1].
    """

    label: str = "log_g"
    noise: Noise = "fresh"
    noise_level: float = 1.0
    noise_seed: int = 0
    eval_seed: int = 42
    input_norm: Literal["none", "global", "mean_spectrum", "per_pixel"] = "mean_spectrum"
    label_norm: Literal["standard", "minmax"] = "standard"

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            UserError: naming the field, its value and the remedy.
        """
        choices: dict[str, tuple[str, ...]] = {
            "noise": ("fixed", "fresh"),
            "input_norm": ("none", "global", "mean_spectrum", "per_pixel"),
            "label_norm": ("standard", "minmax"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise UserError(f"DataRules.{name} = {getattr(self, name)!r}: must be one of {', '.join(allowed)}")
        if not self.noise_level >= 0:
            raise UserError(f"DataRules.noise_level = {self.noise_level}: must be 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Standardisation:
    """Statistics of the training split that inputs and labels are normalised with; they travel with the checkpoint.

    `flux_offset` and `flux_scale` have shape (pixel,); the label's offset, scale and std are in dex.
    """

    flux_offset: np.ndarray
    flux_scale: np.ndarray
    label_offset: float
    label_scale: float
    label_mean: float
    label_std: float

    @classmethod
    def of(cls, shards: Path, rules: DataRules) -> Standardisation:
        """Read the statistics of a shard set and reduce them as the rules say.

        Raises:
            UserError: if the label is unknown or constant in the training split.
        """
        manifest = Manifest.load(shards)
        if rules.label not in manifest.labels:
            raise UserError(f"{shards}: no label {rules.label!r}; the shards have {', '.join(sorted(manifest.labels))}")
        label = manifest.labels[rules.label]
        if not label.std > 0:
            raise UserError(
                f"{shards}: label {rules.label!r} has std {label.std} in the training split; nothing to learn"
            )
        pixels = pd.read_parquet(shards / "statistics.parquet")
        mean = pixels["flux_mean"].to_numpy(np.float64)
        variance = pixels["flux_std"].to_numpy(np.float64) ** 2
        variance += (rules.noise_level * pixels["error_rms"].to_numpy(np.float64)) ** 2
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
            label_offset=label.min if minmax else label.mean,
            label_scale=label.max - label.min if minmax else label.std,
            label_mean=label.mean,
            label_std=label.std,
        )

    def digest(self) -> str:
        """A short hash of the statistics; they are those of the whole training split, not of a cell's prefix."""
        numbers = (self.label_offset, self.label_scale, self.label_mean, self.label_std)
        content = self.flux_offset.tobytes() + self.flux_scale.tobytes() + repr(numbers).encode()
        return hashlib.sha256(content).hexdigest()[:16]

    def normalise_labels(self, labels: np.ndarray) -> np.ndarray:
        """Labels in dex to the units of the loss, float32."""
        return ((labels - self.label_offset) / self.label_scale).astype(np.float32)


def read_labels(params: pd.DataFrame, label: str, where: str) -> np.ndarray:
    """One label column as float64.

    Raises:
        UserError: if it is missing or not finite, naming the first offending row.
    """
    if label not in params:
        raise UserError(f"{where}: no label {label!r}")
    values = params[label].to_numpy(np.float64)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise UserError(
            f"{where}: label {label!r} is not finite in {len(bad)} rows, first in row {bad[0]}; remove them"
        )
    return values


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSplit:
    """A worker's share of a noisy split, on the device: flux (row, pixel) standardised, labels (row,) normalised."""

    flux: Tensor
    labels: Tensor

    @classmethod
    def load(
        cls,
        shards: Path,
        rules: DataRules,
        split: Literal["val", "test"],
        *,
        device: torch.device,
        cache_root: Path,
        rank: int = 0,
        world: int = 1,
    ) -> EvaluationSplit:
        """Draw the split's noise once, on the CPU in row order from `eval_seed`, as the original study does."""
        standardisation = Standardisation.of(shards, rules)
        mapped = map_split(shards, split, Manifest.load(shards).num_rows(split), cache_root)
        assert mapped.flux is not None
        assert mapped.error is not None
        params = mapped.params([rules.label])
        labels = standardisation.normalise_labels(read_labels(params, rules.label, f"{shards}, {split}"))
        generator = torch.Generator().manual_seed(rules.eval_seed)
        flux = torch.empty(len(labels), mapped.flux.shape[1])
        for start in range(0, len(labels), READ_ROWS):
            rows = slice(start, start + READ_ROWS)
            clean, error = torch.from_numpy(mapped.flux[rows]), torch.from_numpy(mapped.error[rows])
            noise = torch.randn(clean.shape, generator=generator)
            flux[rows] = clean.clamp(min=0.0).addcmul(noise, error, value=rules.noise_level)
        mapped.close()
        flux = (flux - torch.from_numpy(standardisation.flux_offset)) / torch.from_numpy(standardisation.flux_scale)
        mine = slice(rank, None, world)
        return cls(flux=flux[mine].to(device), labels=torch.from_numpy(labels[mine].copy()).to(device))


def evaluation_pin(shards: Path, rules: DataRules) -> str:
    """Hash of the validation and test spectra with their noise: rows compare only where it is equal."""
    manifest = Manifest.load(shards)
    parts = [manifest.digest(split, manifest.num_rows(split)) for split in ("val", "test")]
    parts += [rules.label, str(rules.eval_seed), repr(rules.noise_level)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
