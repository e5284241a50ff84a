"""A trained model as a safetensors file: weights, dimensions and all metadata needed to use it, without code.

The file is self-contained. The config.json beside it in a trial's folder repeats the metadata for transformers.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from scaling.errors import UserError
from scaling.files import json_bytes
from scaling.model.ladder import count_parameters
from scaling.model.specvit import ModelConfig, SpecViT
from scaling.parse import parse, parse_object

MODEL_FILE, CONFIG_FILE = "model.safetensors", "config.json"
MODEL_TYPE = "specvit"
_MODEL, _STATISTICS = "model.", "statistics."
EXPECTED = "expected the model.safetensors of a trial, what `scaling export` writes, or a folder with its config.json"


def model_bytes(
    config: ModelConfig, weights: dict[str, Tensor], statistics: dict[str, Tensor], about: dict[str, Any]
) -> bytes:
    """Serialise a model: `weights` (a SpecViT state dict), `statistics` of the inputs, `about` in plain JSON values."""
    tensors = {_MODEL + name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    tensors |= {_STATISTICS + name: tensor.detach().cpu().contiguous() for name, tensor in statistics.items()}
    described = {"config": json.dumps(dataclasses.asdict(config)), "about": json.dumps(about)}
    return save(tensors, {"format": "pt"} | described)


def config_bytes(config: ModelConfig, about: dict[str, Any]) -> bytes:
    """The config.json with which `SpecViTForRegression.from_pretrained` reads such a file."""
    kind = {"model_type": MODEL_TYPE, "architectures": ["SpecViTForRegression"], "dtype": "float32"}
    return json_bytes(kind | dataclasses.asdict(config) | {"about": about})


def load_model(path: Path) -> tuple[SpecViT, dict[str, Tensor], dict[str, Any]]:
    """Read a model file, or a folder written by `save_pretrained`; no code in it is run.

    Returns:
        The model in evaluation mode, the statistics of its inputs, and its metadata.

    Raises:
        UserError: The file is missing, damaged, not written by this project, or contains numbers that are not finite.
    """
    file = path / MODEL_FILE if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{file}: no such file; {EXPECTED}")
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        fields, about = _described(path) if path.is_dir() else (_part(metadata, "config"), _part(metadata, "about"))
        config = parse(ModelConfig, fields, "its config", EXPECTED)
        weights = {n.removeprefix(_MODEL): t for n, t in tensors.items() if n.startswith(_MODEL)}
        expected, found = count_parameters(config).total, sum(tensor.numel() for tensor in weights.values())
        if expected != found:  # checked before a model of those dimensions is allocated
            raise UserError(f"{found:,} weights, and its config is that of {expected:,}")
        model = SpecViT(config)
        model.load_state_dict(weights)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError, UserError) as error:
        reason = str(error).splitlines()[0].removesuffix(f": {EXPECTED}")
        raise UserError(f"{path}: not a model file, or one of another version ({reason}); {EXPECTED}") from error
    statistics = {n.removeprefix(_STATISTICS): t for n, t in tensors.items() if n.startswith(_STATISTICS)}
    # transformers writes an unknown grid as NaN, and reads a file without one
    if path.is_dir() and "wave" in statistics and statistics["wave"].isnan().all():
        del tensors[f"{_STATISTICS}wave"], statistics["wave"]
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise UserError(f"{path}: {name} has values that are not finite: the file is damaged; {EXPECTED}")
    return model.eval(), statistics, about


def _part(metadata: dict[str, str], name: str) -> dict[str, Any]:
    return parse_object(metadata[name], f"its {name}", EXPECTED)


def _described(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Dimensions and metadata from a folder's config.json, which omits default values.

    Raises:
        UserError: It is of another architecture.
    """
    found = parse_object((folder / CONFIG_FILE).read_bytes(), CONFIG_FILE, EXPECTED)
    if (kind := found.get("model_type")) != MODEL_TYPE:
        raise UserError(f"{CONFIG_FILE} is of model_type {kind!r}, not {MODEL_TYPE!r}, and no code in a folder is run")
    names = {field.name for field in dataclasses.fields(ModelConfig)}
    about = found.get("about")
    if not isinstance(about, dict):
        raise UserError(f"{CONFIG_FILE} has no object `about`")
    return {name: found[name] for name in names & found.keys()}, about
