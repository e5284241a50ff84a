"""SpecViT: a 1-D Vision Transformer from a spectrum to its labels, on `transformers`' ViT layers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scaling.errors import UserError

REFERENCE_WIDTH = 256
INIT_STD_AT_REFERENCE = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Every dimension of one SpecViT. The defaults are the original study's model (4,809,729 parameters)."""

    num_pixels: int = 4096
    patch_size: int = 16
    width: int = REFERENCE_WIDTH
    depth: int = 6
    num_heads: int = 8
    mlp_width: int = 1024
    dropout: float = 0.1
    attention_dropout: float = 0.1
    position_std: float = 1.0
    num_outputs: int = 1

    def __post_init__(self) -> None:
        """Check that the dimensions fit together.

        Raises:
            UserError: naming the field, its value and the remedy.
        """
        for name in ("num_pixels", "patch_size", "width", "depth", "num_heads", "mlp_width", "num_outputs"):
            if getattr(self, name) < 1:
                raise UserError(f"ModelConfig.{name} = {getattr(self, name)}: must be at least 1")
        if self.num_pixels % self.patch_size:
            raise UserError(f"ModelConfig.patch_size = {self.patch_size}: must divide num_pixels = {self.num_pixels}")
        if self.width % self.num_heads:
            raise UserError(f"ModelConfig.num_heads = {self.num_heads}: must divide width = {self.width}")
        for name in ("dropout", "attention_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise UserError(f"ModelConfig.{name} = {getattr(self, name)}: must be in [0, 1)")

    @property
    def num_patches(self) -> int:
        """Tokens that carry flux (the class token comes on top)."""
        return self.num_pixels // self.patch_size

    @property
    def num_tokens(self) -> int:
        """Length of the sequence the layers see: the patches and the class token."""
        return self.num_patches + 1


class SpecViT(nn.Module):
    """Conv1d patches + class token + learned positions → pre-norm ViT layers → linear head on the class token.

    There is no pooler: in the original it reaches no loss, so it would count in N without being trained.
    """

    def __init__(self, config: ModelConfig) -> None:
        # Imported where a model is built: it takes seconds, and drivers and controllers handle configurations only.
        from transformers import ViTConfig
        from transformers.models.vit.modeling_vit import ViTLayer

        super().__init__()
        self.config = config
        self.patches = nn.Conv1d(1, config.width, kernel_size=config.patch_size, stride=config.patch_size)
        self.class_token = nn.Parameter(torch.randn(1, 1, config.width) * config.position_std)
        self.positions = nn.Parameter(torch.randn(1, config.num_tokens, config.width) * config.position_std)
        self.dropout = nn.Dropout(config.dropout)
        layer_config = ViTConfig(
            hidden_size=config.width,
            num_hidden_layers=config.depth,
            num_attention_heads=config.num_heads,
            intermediate_size=config.mlp_width,
            hidden_act="gelu",
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.attention_dropout,
            layer_norm_eps=1e-12,
            qkv_bias=True,
            attn_implementation="sdpa",  # type: ignore[call-arg]
        )
        self.layers = nn.ModuleList(ViTLayer(layer_config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=1e-12)
        self.head = nn.Linear(config.width, config.num_outputs)
        self._initialise()

    def _initialise(self) -> None:
        # ViT's std of 0.02 suits width 256; kept there and scaled by 1/sqrt(width), so that a layer's gain is the
        # same on every rung and the ladder compares sizes, not initialisations.
        std = INIT_STD_AT_REFERENCE * (REFERENCE_WIDTH / self.config.width) ** 0.5
        for module in (*self.layers.modules(), self.head):
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
                nn.init.zeros_(module.bias)

    def forward(self, flux: Float[Tensor, "batch pixel"]) -> Float[Tensor, "batch output"]:
        """Predict normalised labels from standardised flux."""
        tokens = self.patches(flux.unsqueeze(1)).transpose(1, 2)
        hidden = torch.cat((self.class_token.expand(len(flux), -1, -1), tokens), dim=1)
        hidden = self.dropout(hidden + self.positions)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.head(self.norm(hidden[:, 0]))
