"""A trained model with all that it takes to use it: a trial's, a folder for the hub, or a checkpoint of the original study."""

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
    """What a checkpoint of the original study does not hold.

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
        """Check that mean and deviation go together.

        Raises:
            UserError: naming the flag, its value and the remedy.
        """
        if (self.label_mean is None) != (self.label_std is None):
            raise UserError(f"--label-mean {self.label_mean}, --label-std {self.label_std}: give both, or neither")
        if self.label_std is not None and not self.label_std > 0:
            raise UserError(f"--label-std {self.label_std:g}: must be above 0")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainedModel:
    """A model and what it was trained with.

    Attributes:
        path: Its file or folder.
        model: In evaluation mode, on the CPU.
        rules: What its spectra and labels were.
        standardisation: Of its training split.
        wave: Its wavelength grid (pixel,) in vacuum Å; None if the file does not say.
        precision: Of its training.
        about: All that the file says.
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
        """Of its inputs, as a model file holds them."""
        used = self.standardisation
        found = {"flux_offset": torch.from_numpy(used.flux_offset), "flux_scale": torch.from_numpy(used.flux_scale)}
        return found if self.wave is None else found | {"wave": torch.from_numpy(self.wave)}

    def to_bytes(self) -> bytes:
        """The content of a model file for it."""
        return model_bytes(self.model.config, self.model.state_dict(), self.statistics, self.about)

    @property
    def num_params(self) -> int:
        """N of the laws."""
        return count_parameters(self.model.config).reach_loss

    @property
    def name(self) -> str:
        """The trial, or the checkpoint it was imported from."""
        return str(self.about.get("trial") or self.about.get("source") or self.path.stem)

    def precision_on(self, device: torch.device) -> Precision:
        """Its training's, but fp32 for fp16 on a CPU, where that is a hundred times slower."""
        return "fp32" if self.precision == "fp16" and device.type == "cpu" else self.precision

    def check_wave(self, wave: Float[ndarray, " pixel"], where: Location) -> None:
        """Compare the wavelengths of some spectra with the model's; where those are not known, the number of pixels.

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
        """What it is, in a few lines."""
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
    """Whether a path names a model file or a folder with one, which say all about it, and not the original's checkpoint."""
    return path.suffix == MODEL_SUFFIX or path.is_dir()


def open_model(path: Path, original: Original | None = None) -> TrainedModel:
    """Read a trial's model.safetensors, its folder, a folder for the hub, or a checkpoint of the original study.

    Raises:
        UserError: It is neither, is damaged, or more must be known of it than is given; or something is given of a model
            file, which says it all.
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
    """Refuse statistics that do not fit the model, are not finite, or by which nothing can be divided.

    Raises:
        UserError: naming the first.
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
    """A checkpoint of the original, with the wavelengths of its training shards and the number of spectra it was trained on.

    Raises:
        UserError: It is no such checkpoint, or already a model of this project.
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
    """A checkpoint of the original as `load_model` gives a model file. It takes raw flux, and z-scored its label."""
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
