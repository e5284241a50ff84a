"""SpecViT for transformers: `from_pretrained`, `save_pretrained`, and `AutoModel` from a hub folder.

`save_pretrained` copies this file and its two neighbours into the folder, so they import nothing else of this project.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel, initialization
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput

from .dropout import attention
from .specvit import ModelConfig, SpecViT, rotation

DIMENSIONS = {field.name: field.default for field in dataclasses.fields(ModelConfig)}


class SpecViTConfig(PreTrainedConfig):
    """The dimensions of a SpecViT, named as in `ModelConfig`, and the metadata of a trained one.

    `about` is the trial's metadata: its `labels`, with `label_offset` and `label_scale` in their own units (dex, K), or
    the `boundary` of a classification; study, trial, spectra, noise.
    """

    model_type = "specvit"
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "width",
        "num_hidden_layers": "depth",
        "num_attention_heads": "num_heads",
        "intermediate_size": "mlp_width",
    }

    def __init__(self, about: dict[str, Any] | None = None, **options: Any) -> None:
        names = {self.attribute_map.get(name, name): name for name in options}
        for name, default in DIMENSIONS.items():
            setattr(self, name, options.pop(names[name]) if name in names else default)
        self.about = about or {}
        self.dimensions()
        super().__init__(**options)

    def dimensions(self) -> ModelConfig:
        """The dimensions as a `ModelConfig`.

        Raises:
            ValueError: They are inconsistent.
        """
        return ModelConfig(**{name: getattr(self, name) for name in DIMENSIONS})


@dataclass
class SpecViTOutput(ModelOutput):
    """Output of the model.

    Attributes:
        loss: Mean squared error of the logits against normalised labels (cross-entropy for a classification); only
            if labels are given.
        logits: Normalised labels (batch, label).
        predictions: Labels in their own units (batch, label); for a classification, the probability of being above the boundary.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    predictions: Tensor | None = None


class InputStatistics(nn.Module):
    """Standardises flux by its training statistics; `wave` (pixel,) are wavelengths in vacuum Å, NaN if unknown."""

    flux_offset: Tensor
    flux_scale: Tensor
    wave: Tensor

    def __init__(self, num_pixels: int) -> None:
        super().__init__()
        self.register_buffer("flux_offset", torch.zeros(num_pixels))
        self.register_buffer("flux_scale", torch.ones(num_pixels))
        self.register_buffer("wave", torch.full((num_pixels,), torch.nan, dtype=torch.float64))

    def forward(self, flux: Tensor) -> Tensor:
        """Flux (batch, pixel) with mean 0 and standard deviation about 1."""
        return (flux.float() - self.flux_offset) / self.flux_scale


class SpecViTForRegression(PreTrainedModel):
    """A SpecViT with its training statistics: maps observed flux to labels in their own units.

    The layers are those that a trial trains. `attn_implementation` "sdpa" uses their own attention; "eager" and the others
    in transformers' registry (flash attention where installed) compute the same with another kernel.
    """

    config_class = SpecViTConfig
    main_input_name = "flux"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _keep_in_fp32_modules_strict = {"statistics", "whitening"}  # noqa: RUF012
    _keys_to_ignore_on_load_missing = {r"statistics\.wave"}  # noqa: RUF012

    def __init__(self, config: SpecViTConfig) -> None:
        super().__init__(config)
        self.model = SpecViT(config.dimensions())
        self.statistics = InputStatistics(config.num_pixels)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # SpecViT initialises itself; loading a model re-initialises weights that are missing from the file.
        if isinstance(module, SpecViT) and module.config.positions == "rope":
            initialization.copy_(module.get_buffer("rotation"), rotation(module.config))
        elif isinstance(module, InputStatistics):
            initialization.zeros_(module.flux_offset)
            initialization.ones_(module.flux_scale)
            initialization.constant_(module.wave, torch.nan)

    def forward(self, flux: Tensor, labels: Tensor | None = None) -> SpecViTOutput:
        """Predict labels.

        Args:
            flux: Observed flux (batch, pixel) on the grid `statistics.wave`, not standardised, as in the training set.
            labels: True labels in their own units (batch, label), for the loss.
        """
        about, outputs = self.config.about, self.config.num_outputs
        logits = self.model(self.statistics(flux), self._attend).float()
        offset, scale = (
            logits.new_tensor(about.get(name, [default] * outputs))
            for name, default in (("label_offset", 0.0), ("label_scale", 1.0))
        )
        boundary, loss = about.get("boundary"), None
        if boundary is not None:
            if labels is not None:
                loss = functional.binary_cross_entropy_with_logits(logits, (labels > boundary).float())
            return SpecViTOutput(loss=loss, logits=logits, predictions=logits.sigmoid())
        if labels is not None:
            loss = functional.mse_loss(logits, (labels - offset) / scale)
        return SpecViTOutput(loss=loss, logits=logits, predictions=logits * scale + offset)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        implementation = self.config._attn_implementation
        if implementation in (None, "sdpa"):
            return attention(query, key, value, dropout)
        kernel = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, _eager)
        scaling = query.shape[-1] ** -0.5
        return kernel(self, query, key, value, None, dropout=dropout, scaling=scaling, is_causal=False)[0].transpose(
            1, 2
        )


def _eager(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: None,
    *,
    dropout: float,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Unfused attention with the signature of transformers' registry."""
    weights = torch.softmax(query @ key.mT * scaling, dim=-1)
    mixed = functional.dropout(weights, dropout, module.training) @ value
    return mixed.transpose(1, 2).contiguous(), weights


SpecViTConfig.register_for_auto_class()
SpecViTForRegression.register_for_auto_class("AutoModel")
