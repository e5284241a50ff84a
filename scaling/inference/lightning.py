"""Import of the original study's checkpoints (PyTorch Lightning files with names of transformers 4.56) as a SpecViT."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scaling.errors import UserError
from scaling.model.ladder import HEAD_WIDTH
from scaling.model.specvit import ModelConfig, SpecViT

_EMBEDDINGS = "model.vit.embeddings."
_PROJECTION = f"{_EMBEDDINGS}patch_embeddings.projection"
_POSITIONS = f"{_EMBEDDINGS}position_embeddings"
_LAYER = "model.vit.encoder.layer."
_POOLER = "model.vit.pooler."
"""Does not reach the loss in the original, so it keeps its initial weights: dropped."""

_LAYER_PARTS = {
    "attention_norm": ("layernorm_before",),
    "qkv": ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    "attention_out": ("attention.output.dense",),
    "mlp_norm": ("layernorm_after",),
    "mlp_in": ("intermediate.dense",),
    "mlp_out": ("output.dense",),
}
"""Our name of each part of a layer, and the original's names; several are concatenated."""


def read_lightning(
    path: Path, *, num_heads: int | None = None, stride: int | None = None, num_pixels: int = 4096
) -> tuple[SpecViT, dict[str, Any]]:
    """Read a checkpoint of the original: the model in evaluation mode, and the file's training metadata.

    Dimensions follow from the tensors' shapes, except those below. Only weights and plain values are loaded: the file
    cannot run code.

    Args:
        path: The checkpoint: a `state_dict` whose names all begin with `model.`. Other contents are ignored.
        num_heads: Number of attention heads; by default the width divided by 32, as in the original.
        stride: Pixels from one patch to the next. By default, a convolution's patches do not overlap, and a sliding
            window has the stride that gives as many patches of `num_pixels` as the model has positions.
        num_pixels: Pixels of a spectrum, if the tokenizer is a sliding window; a convolution's follow from its patches.

    Returns:
        The model, and `source` (the file's name) with `epoch` and `global_step` if the file has them.

    Raises:
        UserError: The file cannot be loaded as weights only, or does not contain such a model.
    """
    checkpoint = _load(path)
    weights = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(weights, dict) or not all(type(k) is str and isinstance(v, Tensor) for k, v in weights.items()):
        raise UserError(f"{path}: no 'state_dict' of tensors: expected a PyTorch-Lightning checkpoint of the original")
    found = (re.match(rf"{re.escape(_LAYER)}(\d+)\.", name) for name in weights)
    depth = 1 + max((int(match[1]) for match in found if match), default=0)
    sources = _sources(depth)
    _check_names(path, weights, {name for names in sources.values() for name in names})
    config = _config(path, weights, depth, num_heads, stride, num_pixels)
    model = SpecViT(config)
    try:
        renamed = {ours: torch.cat([weights[name] for name in theirs]) for ours, theirs in sources.items()}
        model.load_state_dict(renamed)
    except RuntimeError as error:
        raise UserError(f"{path}: shapes that do not fit together ({' '.join(str(error).split())[:300]})") from error
    if bad := [name for name in renamed if not renamed[name].isfinite().all()]:
        raise UserError(f"{path}: {', '.join(sources[bad[0]])}: values that are not finite; copy it again")
    known = {name: checkpoint[name] for name in ("epoch", "global_step") if isinstance(checkpoint.get(name), int)}
    return model.eval(), {"source": path.name, **known}


def _load(path: Path) -> Any:
    """Load the file with PyTorch's weights-only loader, which rejects all but tensors and plain values."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a checkpoint (.ckpt) of the original, or a model file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused is None:
            raise UserError(f"{path}: not a PyTorch checkpoint, or a damaged one: copy it again") from error
        raise UserError(
            f"{path}: not loaded, because it holds {refused[1]}, and objects other than weights and plain values can run code; "
            "where the file was made and is trusted, save its weights alone: torch.save({'state_dict': ckpt['state_dict']}, ...)"
        ) from error
    except (EOFError, RuntimeError, ValueError, KeyError) as error:
        raise UserError(f"{path}: not a PyTorch checkpoint, or a damaged one: copy it again") from error


def _sources(depth: int) -> dict[str, tuple[str, ...]]:
    """Our name of each tensor, and the original names it is assembled from."""
    names: dict[str, tuple[str, ...]] = {
        "class_token": (f"{_EMBEDDINGS}cls_token",),
        "positions": (_POSITIONS,),
    }
    for kind in ("weight", "bias"):
        names[f"tokenizer.{kind}"] = (f"{_PROJECTION}.{kind}",)
        for layer in range(depth):
            for ours, theirs in _LAYER_PARTS.items():
                names[f"layers.{layer}.{ours}.{kind}"] = tuple(f"{_LAYER}{layer}.{part}.{kind}" for part in theirs)
        names[f"norm.{kind}"] = (f"model.vit.layernorm.{kind}",)
        names[f"head.{kind}"] = (f"model.regressor.{kind}",)
    return names


def _check_names(path: Path, weights: dict[str, Tensor], needed: set[str]) -> None:
    missing = needed - weights.keys()
    unknown = {name for name in weights.keys() - needed if not name.startswith(_POOLER)}
    if missing or unknown:
        raise UserError(
            f"{path}: not the original's model: missing {_listed(missing)}; unknown {_listed(unknown)}; expected "
            "a regressor on ViTModel as transformers 4.56 names it, with learned positions and no preprocessor"
        )


def _listed(names: Iterable[str], most: int = 4) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return ", ".join(ordered[:most]) + more if ordered else "none"


def _config(
    path: Path, weights: dict[str, Tensor], depth: int, num_heads: int | None, stride: int | None, num_pixels: int
) -> ModelConfig:
    """The model's dimensions, from the tensors' shapes."""
    projection, positions = weights[f"{_PROJECTION}.weight"], weights[_POSITIONS]
    if projection.ndim not in (2, 3) or positions.ndim != 3 or positions.shape[1] < 2:
        raise UserError(
            f"{path}: a tokenizer of shape {tuple(projection.shape)} and positions of shape {tuple(positions.shape)}: expected "
            "(width, 1, patch) or (width, patch), and (1, tokens, width)"
        )
    (width, *_, patch), tokens = projection.shape, positions.shape[1]
    sliding = projection.ndim == 2
    if sliding and stride is None:
        stride = _sliding_stride(path, num_pixels, patch, tokens - 1)
    if not sliding:
        num_pixels = (tokens - 2) * (stride or patch) + patch
    config = ModelConfig(
        num_pixels=num_pixels,
        patch_size=patch,
        stride=0 if stride in (None, patch) else stride,
        tokenizer="sliding" if sliding else "conv1d",
        width=width,
        depth=depth,
        num_heads=max(1, width // HEAD_WIDTH) if num_heads is None else num_heads,
        mlp_width=len(weights[f"{_LAYER}0.intermediate.dense.bias"]),
        num_outputs=len(weights["model.regressor.bias"]),
    )
    if config.num_tokens != tokens:
        raise UserError(
            f"{path}: {tokens - 1} patches of {patch} pixels, but a stride of {stride} cuts {num_pixels} pixels into "
            f"{config.num_patches}: give another --stride"
        )
    return config


def _sliding_stride(path: Path, num_pixels: int, patch: int, patches: int) -> int:
    """The stride that cuts `num_pixels` into `patches` patches, the last one zero-padded."""
    strides = [step for step in range(1, patch + 1) if -(-(num_pixels - patch) // step) + 1 == patches]
    if len(strides) != 1:
        found = f"of {', '.join(map(str, strides))} fit" if strides else "fits"
        raise UserError(
            f"{path}: {'several strides ' if strides else 'no stride '}{found} {patches} patches of {patch} pixels in "
            f"{num_pixels} pixels: give the original's with --stride"
        )
    return strides[0]
