"""A trained model with everything needed to use it, from a trial, a hub folder, or a checkpoint of the original."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from scaling.data.batches.rules import DataRules, Standardisation
from scaling.data.hdf5.reader import WAVE_TOLERANCE
from scaling.data.shards.manifest import Manifest
from scaling.errors import UserError
from scaling.files import Location
from scaling.inference.lightning import read_lightning
from scaling.model.checkpoint import load_model, model_bytes
from scaling.model.ladder import count_parameters
from scaling.model.specvit import SpecViT
from scaling.study.declaration import stable
from scaling.training.recipe import Precision

MODEL_SUFFIX = ".safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Original:
    """Information that is missing from a checkpoint of the original study.

    `shards` is the set it was trained on: its wavelengths, and the mean and standard deviation of the label in its own
    unit, unless these are given. `num_heads`, `stride` and `num_pixels` are those of `read_lightning`.
    """

    label: str = "log_g"
    label_mean: float | None = None
    label_std: float | None = None
    shards: Location | None = None
    num_heads: int | None = None
    stride: int | None = None
    num_pixels: int | None = None

    def __post_init__(self) -> None:
        """Check that mean and standard deviation are given together.

        Raises:
            UserError: Names the flag, its value and the remedy.
        """
        if (self.label_mean is None) != (self.label_std is None):
            raise UserError(f"--label-mean {self.label_mean}, --label-std {self.label_std}: give both, or neither")
        if self.label_std is not None and not self.label_std > 0:
            raise UserError(f"--label-std {self.label_std:g}: must be above 0")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainedModel:
    """A model and its training settings.

    Attributes:
        path: Its file or folder.
        model: The model in evaluation mode, on the CPU.
        rules: How its spectra became inputs and labels.
        standardisation: Statistics of its training split.
        wave: Its wavelength grid (pixel,) in vacuum Å; None if the file does not have it.
        precision: Its training precision.
        about: All metadata in the file.
    """

    path: Path
    model: SpecViT
    rules: DataRules
    standardisation: Standardisation
    wave: Float[ndarray, " pixel"] | None
    precision: Precision
    about: dict[str, Any]

    @property
    def statistics(self) -> dict[str, Tensor]:
        """Statistics of its inputs, in the form of a model file."""
        used = self.standardisation
        found = {"flux_offset": torch.from_numpy(used.flux_offset), "flux_scale": torch.from_numpy(used.flux_scale)}
        return found if self.wave is None else found | {"wave": torch.from_numpy(self.wave)}

    def to_bytes(self) -> bytes:
        """Serialise it as a model file."""
        return model_bytes(self.model.config, self.model.state_dict(), self.statistics, self.about)

    @property
    def num_params(self) -> int:
        """The number of parameters, N of the laws."""
        return count_parameters(self.model.config).reach_loss

    @property
    def name(self) -> str:
        """The trial, or the name of the imported checkpoint."""
        return str(self.about.get("trial") or self.about.get("source") or self.path.stem)

    def precision_on(self, device: torch.device) -> Precision:
        """The training precision, except that fp16 becomes fp32 on a CPU, where fp16 is a hundred times slower."""
        return "fp32" if self.precision == "fp16" and device.type == "cpu" else self.precision

    def check_wave(self, wave: Float[ndarray, " pixel"], where: Location) -> None:
        """Compare the wavelengths of spectra with the model's; if those are unknown, only the number of pixels.

        Raises:
            UserError: They differ.
        """
        expected = self.model.config.num_pixels
        if len(wave) != expected:
            raise UserError(
                f"{where}: spectra of {len(wave)} pixels, but {self.path} takes {expected}: give spectra on its grid"
            )
        if self.wave is not None and (apart := float(np.abs(wave - self.wave).max())) > WAVE_TOLERANCE:
            raise UserError(
                f"{where}: wavelengths {wave[0]:.2f} to {wave[-1]:.2f} Å, up to {apart:.4g} Å from those that {self.path} was "
                f"trained on ({self.wave[0]:.2f} to {self.wave[-1]:.2f} Å): resample to its grid"
            )

    def describe(self) -> str:
        """A description in a few lines."""
        config, labels = self.model.config, self.standardisation
        facts = {
            name: self.about[name]
            for name in ("study", "trial", "source", "epoch", "global_step", "lr")
            if name in self.about
        }
        grid = "wavelengths unknown" if self.wave is None else f"{self.wave[0]:.2f} to {self.wave[-1]:.2f} Å"
        lines = [
            f"model {self.path}: {', '.join(f'{name} {value}' for name, value in facts.items())}",
            f"  {self.num_params:,} parameters: width {config.width}, depth {config.depth}, {config.num_heads} heads, MLP "
            f"{config.mlp_width}; {config.tokenizer} patches of {config.patch_size}, one each {config.step} pixels, "
            f"positions {config.positions}",
            f"  input: {config.num_pixels} pixels, {grid}, input norm {self.rules.input_norm}, "
            f"noise level {self.rules.noise_level:g}",
        ]
        if self.rules.boundary is not None:
            return "\n".join([*lines, f"  answers whether {self.rules.target}"])
        scales = zip(self.rules.labels, labels.label_offset, labels.label_scale, strict=True)
        return "\n".join(
            [*lines, *(f"  {name} = {offset:.6g} + {scale:.6g} × output" for name, offset, scale in scales)]
        )


def of_this_project(path: Path) -> bool:
    """Whether a path is a self-contained model file, or a folder with one, rather than a checkpoint of the original."""
    return path.suffix == MODEL_SUFFIX or path.is_dir()


def open_model(path: Path, original: Original | None = None) -> TrainedModel:
    """Read a trial's model.safetensors, its folder, a hub folder, or a checkpoint of the original study.

    Raises:
        UserError: It is none of these, is damaged, or lacks required options; or options are given for a self-contained
            model file.
    """
    return _trained(path, *_read(path, original or Original()))


def _trained(path: Path, model: SpecViT, statistics: dict[str, Tensor], about: dict[str, Any]) -> TrainedModel:
    names = ("label_offset", "label_scale", "label_mean", "label_std")
    try:
        rules = DataRules(**about["rules"] | {"other_labels": tuple(about["rules"].get("other_labels", ()))})
        labels = {name: np.array(about[name], np.float64).reshape(-1) for name in names}
        pixels = {name: statistics[name].numpy() for name in ("flux_offset", "flux_scale")}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path}: a model file of another version ({error}): use the version that wrote it") from error
    if len(rules.labels) != model.config.num_outputs:
        raise UserError(
            f"{path}: {model.config.num_outputs} outputs for the labels {', '.join(rules.labels)}: import models of one label"
        )
    wave = {"wave": statistics["wave"].numpy()} if "wave" in statistics else {}
    _check_statistics(path, labels, len(rules.labels))
    _check_statistics(path, pixels | wave, model.config.num_pixels)
    spectra = about.get("num_spectra")
    if spectra is not None and (type(spectra) is not int or spectra < 1):
        raise UserError(f"{path}: num_spectra = {spectra!r}: must be a number of spectra; the file is damaged")
    precision = about.get("precision", "fp32")
    return TrainedModel(
        path=path,
        model=model,
        rules=rules,
        standardisation=Standardisation(**pixels, **labels, boundary=rules.boundary),
        wave=wave.get("wave"),
        precision=precision if precision in get_args(Precision) else "fp32",
        about=about,
    )


def _check_statistics(path: Path, arrays: dict[str, ndarray], length: int) -> None:
    """Check that statistics fit the model, are finite, and can be divided by.

    Raises:
        UserError: Names the first invalid one.
    """
    for name, values in arrays.items():
        if values.shape != (length,) or values.dtype.kind != "f":
            wrong = f"{values.dtype} of shape {values.shape}, expected floats of shape ({length},)"
        elif not np.isfinite(values).all():
            wrong = "has values that are not finite"
        elif name.endswith(("_scale", "_std")) and not (values > 0).all():
            wrong = "has values that are not above 0"
        elif name == "wave" and not (np.diff(values) > 0).all():
            wrong = "does not rise"
        else:
            continue
        raise UserError(f"{path}: {name} {wrong}: the file is damaged; write it again")


def import_model(path: Path, original: Original, num_spectra: int | None = None) -> TrainedModel:
    """Import a checkpoint of the original, with the wavelengths and the number of its training spectra.

    Raises:
        UserError: It is not such a checkpoint, or is already a model of this project.
    """
    if of_this_project(path):
        raise UserError(f"{path}: is a model file already; give a checkpoint (.ckpt) of the original, or --hub DIR")
    model, statistics, about = _import(path, original)
    return _trained(path, model, statistics, about | {"num_spectra": num_spectra})


def _read(path: Path, original: Original) -> tuple[SpecViT, dict[str, Tensor], dict[str, Any]]:
    if not of_this_project(path):
        return _import(path, original)
    if original != Original():
        raise UserError(
            f"{path}: a model file says its own label, label statistics, heads and stride; leave out their flags"
        )
    return load_model(path)


def _import(path: Path, original: Original) -> tuple[SpecViT, dict[str, Tensor], dict[str, Any]]:
    """Convert a checkpoint of the original to the output of `load_model`. It uses raw flux and z-scored labels."""
    manifest = None if original.shards is None else Manifest.load(original.shards)
    pixels = original.num_pixels or (4096 if manifest is None else manifest.pixels)
    model, about = read_lightning(path, num_heads=original.num_heads, stride=original.stride, num_pixels=pixels)
    mean, std = original.label_mean, original.label_std
    if mean is None or std is None:
        if manifest is None:
            raise UserError(
                f"{path}: does not hold the mean and standard deviation of its training labels: give --shards, the set it was "
                "trained on, or --label-mean and --label-std"
            )
        label = manifest.label(original.label)
        mean, std = label.mean, label.std
    statistics = {
        "flux_offset": torch.zeros(model.config.num_pixels),
        "flux_scale": torch.ones(model.config.num_pixels),
    }
    if manifest is not None:
        if manifest.pixels != model.config.num_pixels:
            raise UserError(
                f"{path}: takes {model.config.num_pixels} pixels, but {manifest.dest} has {manifest.pixels}: name the set it was trained on"
            )
        statistics["wave"] = torch.from_numpy(manifest.wave)
    rules = DataRules(label=original.label, noise="fresh", input_norm="none", label_norm="standard")
    normalisation = {"label_offset": [mean], "label_scale": [std], "label_mean": [mean], "label_std": [std]}
    return (
        model,
        statistics,
        about | normalisation | {"label": rules.label, "labels": [rules.label], "rules": stable(rules)},
    )
