"""A trained model as one safetensors file: weights, dimensions and everything needed to use it. Holds no code."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from scaling.errors import UserError
from scaling.model.ladder import count_parameters
from scaling.model.specvit import ModelConfig, SpecViT
from scaling.parse import parse, parse_object

_MODEL, _EXTRA = "model.", "extra."
EXPECTED = "expected the model.safetensors of a trial, or what `scaling export` writes"


def model_bytes(
    config: ModelConfig, weights: dict[str, Tensor], extra: dict[str, Tensor], about: dict[str, Any]
) -> bytes:
    """The file's content: `weights` (a SpecViT state), `extra` tensors (input statistics), `about` in plain JSON values."""
    tensors = {_MODEL + name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    tensors |= {_EXTRA + name: tensor.detach().cpu().contiguous() for name, tensor in extra.items()}
    return save(tensors, {"config": json.dumps(dataclasses.asdict(config)), "about": json.dumps(about)})


def load_model(path: Path) -> tuple[SpecViT, dict[str, Tensor], dict[str, Any]]:
    """Read a file of `model_bytes`: the model in evaluation mode, the extra tensors, what is known about it.

    Raises:
        UserError: if the file is missing, damaged, or not one of ours, or holds numbers that are not finite.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; {EXPECTED}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        config = parse(ModelConfig, parse_object(metadata["config"], "its config", EXPECTED), "its config", EXPECTED)
        weights = {n.removeprefix(_MODEL): t for n, t in tensors.items() if n.startswith(_MODEL)}
        expected, found = count_parameters(config).total, sum(tensor.numel() for tensor in weights.values())
        if expected != found:  # before a model of those dimensions is made
            raise UserError(f"{found:,} weights, and its config is that of {expected:,}")
        model = SpecViT(config)
        model.load_state_dict(weights)
        about = parse_object(metadata["about"], "what it says of itself", EXPECTED)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError, UserError) as error:
        reason = str(error).splitlines()[0].removesuffix(f": {EXPECTED}")
        raise UserError(f"{path}: not a model file, or one of another version ({reason}); {EXPECTED}") from error
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise UserError(f"{path}: {name} has values that are not finite: the file is damaged; {EXPECTED}")
    extra = {name.removeprefix(_EXTRA): tensor for name, tensor in tensors.items() if name.startswith(_EXTRA)}
    return model.eval(), extra, about
