"""SpecViT as transformers knows models: `from_pretrained`, `save_pretrained`, `AutoModel` from a folder for the hub.

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
    """The dimensions of a SpecViT, by the names of `ModelConfig`, and what is known of a trained one.

    `about` is what a trial says of itself: its `labels`, with `label_offset` and `label_scale` in their own units (dex, K), or
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
        """The dimensions alone.

        Raises:
            ValueError: They do not fit together.
        """
        return ModelConfig(**{name: getattr(self, name) for name in DIMENSIONS})


@dataclass
class SpecViTOutput(ModelOutput):
    """What the model answers.

    Attributes:
        loss: Mean squared error of the logits, of labels normalised as in training (cross-entropy of a classification); only
            where labels are given.
        logits: Normalised labels (batch, label).
        predictions: Labels in their own units (batch, label); of a classification the probability of being above the boundary.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    predictions: Tensor | None = None


class InputStatistics(nn.Module):
    """Standardises flux by its training split's statistics; `wave` (pixel,) are the wavelengths in vacuum Å, NaN if unknown."""

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
    """A SpecViT with the statistics it was trained with: from observed flux to labels in their own units.

    The layers are those a trial trains. `attn_implementation` "sdpa" is theirs; "eager" and the others of transformers'
    registry (flash attention where it is installed) compute the same by another kernel.
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
        # SpecViT initialises itself; weights that a file does not hold are initialised again when a model is loaded.
        if isinstance(module, SpecViT) and module.config.positions == "rope":
            initialization.copy_(module.get_buffer("rotation"), rotation(module.config))
        elif isinstance(module, InputStatistics):
            initialization.zeros_(module.flux_offset)
            initialization.ones_(module.flux_scale)
            initialization.constant_(module.wave, torch.nan)

    def forward(self, flux: Tensor, labels: Tensor | None = None) -> SpecViTOutput:
        """Estimate labels.

        Args:
            flux: Observed flux (batch, pixel) on the grid `statistics.wave`, not standardised, as in the training set.
            labels: In their own units (batch, label), for the loss.
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
    """Attention written out, as transformers' registry calls it."""
    weights = torch.softmax(query @ key.mT * scaling, dim=-1)
    mixed = functional.dropout(weights, dropout, module.training) @ value
    return mixed.transpose(1, 2).contiguous(), weights


SpecViTConfig.register_for_auto_class()
SpecViTForRegression.register_for_auto_class("AutoModel")
