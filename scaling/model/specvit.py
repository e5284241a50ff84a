"""SpecViT: a 1-D Vision Transformer that predicts labels from a spectrum, in plain PyTorch.

A hub folder contains a copy of this file that needs only PyTorch, so the project's modules are imported relatively.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from .dropout import Dropout, attention

try:
    from jaxtyping import Float

    from scaling.errors import UserError
except ImportError:  # in a hub folder, without this project
    UserError = ValueError  # type: ignore[assignment, misc]

REFERENCE_WIDTH = 256
INIT_STD_AT_REFERENCE = 0.02
NORM_EPSILON = 1e-12
ROPE_BASE = 10_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """All dimensions of a SpecViT. The defaults are the original study's model (4,809,729 parameters).

    `tokenizer` "conv1d" cuts the spectrum into patches, one every `stride` pixels (0: `patch_size`, no overlap), and
    drops an incomplete last patch; "sliding" pads it with zeros. `positions` are "learned", rotary
    ("rope", Su et al. 2021, arXiv 2104.09864) or "none". With `whitening_components`, a linear map of the pixels to that
    many components is applied first; its parameters count if it is trained (`whitening_trained`).
    """

    num_pixels: int = 4096
    patch_size: int = 16
    stride: int = 0
    tokenizer: Literal["conv1d", "sliding"] = "conv1d"
    positions: Literal["learned", "rope", "none"] = "learned"
    width: int = REFERENCE_WIDTH
    depth: int = 6
    num_heads: int = 8
    mlp_width: int = 1024
    dropout: float = 0.1
    attention_dropout: float = 0.1
    position_std: float = 1.0
    num_outputs: int = 1
    whitening_components: int = 0
    whitening_trained: bool = False

    def __post_init__(self) -> None:
        """Check that the dimensions are consistent.

        Raises:
            UserError: Names the field, its value and the remedy.
        """
        for name in ("num_pixels", "patch_size", "width", "depth", "num_heads", "mlp_width", "num_outputs"):
            if getattr(self, name) < 1:
                raise UserError(f"ModelConfig.{name} = {getattr(self, name)}: must be at least 1")
        for name, allowed in (("tokenizer", ("conv1d", "sliding")), ("positions", ("learned", "rope", "none"))):
            if getattr(self, name) not in allowed:
                raise UserError(f"ModelConfig.{name} = {getattr(self, name)!r}: must be one of {', '.join(allowed)}")
        if not 0 <= self.whitening_components <= self.num_pixels:
            raise UserError(
                f"ModelConfig.whitening_components = {self.whitening_components}: must be in 0 ... num_pixels = {self.num_pixels}"
            )
        if not 0 <= self.stride <= self.patch_size:
            raise UserError(
                f"ModelConfig.stride = {self.stride}: must be in 1 ... patch_size = {self.patch_size}, or 0 for it"
            )
        if self.patch_size > self.num_inputs:
            raise UserError(f"ModelConfig.patch_size = {self.patch_size}: must be at most the {self.num_inputs} inputs")
        if self.tokenizer == "conv1d" and (self.num_inputs - self.patch_size) % self.step:
            raise UserError(
                f"ModelConfig.patch_size = {self.patch_size}, stride = {self.step}: do not fill num_pixels = {self.num_inputs}; "
                "choose sizes that do, or tokenizer='sliding', which fills up with zeros"
            )
        if self.width % self.num_heads:
            raise UserError(f"ModelConfig.num_heads = {self.num_heads}: must divide width = {self.width}")
        if self.positions == "rope" and self.width // self.num_heads % 2:
            raise UserError(
                f"ModelConfig.positions = 'rope': heads must have an even width, {self.width} / {self.num_heads} is odd"
            )
        for name in ("dropout", "attention_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise UserError(f"ModelConfig.{name} = {getattr(self, name)}: must be in [0, 1)")

    @property
    def num_inputs(self) -> int:
        """Values per spectrum that are cut into patches: pixels, or whitening components."""
        return self.whitening_components or self.num_pixels

    @property
    def step(self) -> int:
        """Pixels from one patch to the next."""
        return self.stride or self.patch_size

    @property
    def num_patches(self) -> int:
        """Tokens that carry flux (not counting the class token)."""
        return -(-(self.num_inputs - self.patch_size) // self.step) + 1

    @property
    def num_tokens(self) -> int:
        """Sequence length in the layers: the patches and the class token."""
        return self.num_patches + 1


class SpecViT(nn.Module):
    """Patches + class token + positions → pre-norm ViT layers → linear head on the class token.

    There is no pooler: in the original it does not reach the loss, so it would count in N without being trained.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        if config.whitening_components:
            self.whitening = nn.Linear(config.num_pixels, config.whitening_components)
        sliding = config.tokenizer == "sliding"
        self.tokenizer = (
            nn.Linear(config.patch_size, config.width)
            if sliding
            else nn.Conv1d(1, config.width, kernel_size=config.patch_size, stride=config.step)
        )
        self.class_token = nn.Parameter(torch.randn(1, 1, config.width) * config.position_std)
        if config.positions == "learned":
            self.positions = nn.Parameter(torch.randn(1, config.num_tokens, config.width) * config.position_std)
        elif config.positions == "rope":
            self.register_buffer("rotation", rotation(config), persistent=False)
        self.dropout = Dropout(config.dropout)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=NORM_EPSILON)
        self.head = nn.Linear(config.width, config.num_outputs)
        self._initialise()

    def _initialise(self) -> None:
        # ViT's std of 0.02 suits width 256. It is scaled by 1/sqrt(width) from there, so that a layer's gain is the
        # same on every rung and the ladder compares sizes, not initialisations.
        std = INIT_STD_AT_REFERENCE * (REFERENCE_WIDTH / self.config.width) ** 0.5
        for module in (*self.layers.modules(), self.head):
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
                nn.init.zeros_(module.bias)

    def forward(
        self, flux: Float[Tensor, "batch pixel"], attend: Callable[..., Tensor] = attention
    ) -> Float[Tensor, "batch output"]:
        """Predict normalised labels from standardised flux; `attend` replaces `attention` by another kernel."""
        inputs = self._whiten(flux) if self.config.whitening_components else flux
        tokens = self._tokens(inputs.to(self.class_token.dtype))  # differs from float32 if a user casts the model
        hidden = torch.cat((self.class_token.expand(len(flux), -1, -1), tokens), dim=1)
        if self.config.positions == "learned":
            hidden = hidden + self.positions
        hidden = self.dropout(hidden)
        rotation = self.rotation if self.config.positions == "rope" else None
        for layer in self.layers:
            hidden = layer(hidden, rotation, attend)
        return self.head(self.norm(hidden[:, 0]))

    def _whiten(self, flux: Float[Tensor, "batch pixel"]) -> Float[Tensor, "batch component"]:
        # Always in full precision: small variances are differences of large products.
        with torch.autocast(flux.device.type, enabled=False):
            return self.whitening(flux.float())

    def _tokens(self, inputs: Float[Tensor, "batch input"]) -> Float[Tensor, "batch patch width"]:
        # A matrix product of patches and kernel for "conv1d" too: the same sums, with the same kernels as the layers.
        config = self.config
        missing = (config.num_patches - 1) * config.step + config.patch_size - config.num_inputs
        filled = functional.pad(inputs, (0, missing)) if missing else inputs
        patches = filled.unfold(1, config.patch_size, config.step)
        return functional.linear(patches, self.tokenizer.weight.flatten(1), self.tokenizer.bias)


class Layer(nn.Module):
    """A pre-norm Transformer layer: h + attention(norm(h)), then h + MLP(norm(h)), as in ViT (arXiv 2010.11929)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads, self.attention_dropout = config.num_heads, config.attention_dropout
        self.attention_norm = nn.LayerNorm(config.width, eps=NORM_EPSILON)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.attention_out = nn.Linear(config.width, config.width)
        self.mlp_norm = nn.LayerNorm(config.width, eps=NORM_EPSILON)
        self.mlp_in = nn.Linear(config.width, config.mlp_width)
        self.mlp_out = nn.Linear(config.mlp_width, config.width)
        self.dropout = Dropout(config.dropout)

    def forward(
        self,
        hidden: Float[Tensor, "batch token width"],
        rotation: Float[Tensor, "2 token channel"] | None,
        attend: Callable[..., Tensor] = attention,
    ) -> Float[Tensor, "batch token width"]:
        """Apply the layer; `rotation` is `rotation(config)` if positions are rotary."""
        mixed = self._mix(self.attention_norm(hidden), rotation, attend)
        hidden = hidden + self.dropout(self.attention_out(mixed))
        return hidden + self.dropout(self.mlp_out(functional.gelu(self.mlp_in(self.mlp_norm(hidden)))))

    def _mix(
        self,
        hidden: Float[Tensor, "batch token width"],
        rotation: Float[Tensor, "2 token channel"] | None,
        attend: Callable[..., Tensor],
    ) -> Float[Tensor, "batch token width"]:
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in self.qkv(hidden).chunk(3, dim=-1)
        )
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        mixed = attend(query, key, value, self.attention_dropout if self.training else 0.0)
        return mixed.transpose(1, 2).flatten(-2)


def rotation(config: ModelConfig) -> Float[Tensor, "2 token channel"]:
    """Cosines and sines that rotate a head's channels; the class token is at position 0, the patches at 1, 2, ….

    Channel pair i of c rotates by position · 10000^(−2i/c) (Su et al. 2021, eq. 15).
    """
    channels = config.width // config.num_heads
    speeds = ROPE_BASE ** (-torch.arange(0, channels, 2) / channels)
    angles = torch.outer(torch.arange(config.num_tokens), speeds).repeat(1, 2)
    return torch.stack((angles.cos(), angles.sin()))


def rotate(
    values: Float[Tensor, "batch head token channel"], rotation: Float[Tensor, "2 token channel"]
) -> Float[Tensor, "batch head token channel"]:
    """Rotate channel pairs (i, i + c/2) of c channels by their token's angles (Su et al. 2021, eq. 34)."""
    first, second = values.chunk(2, dim=-1)
    cosine, sine = rotation
    return (values * cosine + torch.cat((-second, first), dim=-1) * sine).to(values.dtype)
