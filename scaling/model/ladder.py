"""The ladder of model sizes: the width determines every other dimension; exact parameter and FLOP counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from scaling.errors import UserError
from scaling.model.specvit import REFERENCE_WIDTH, ModelConfig
from scaling.parse import Count, Fraction, Natural, declared

REFERENCE_DEPTH = 6
HEAD_WIDTH = 32


@declared
class Whitening:
    """A linear map of the spectra before the tokenizer, fitted to the covariance of the noisy training spectra.

    "pca" gives the largest `components` (0: all) principal components, each with variance 1; "zca" rotates them back to
    pixels. The map is frozen for the first `frozen_epochs` passes, then trained with the rest: 0 trains it from the start,
    None freezes it for good. Its parameters count in N only if it is trained.
    """

    kind: Literal["pca", "zca"]
    components: Natural = 0
    frozen_epochs: Natural | None = None

    def __post_init__(self) -> None:
        """Check that the fields are consistent.

        Raises:
            UserError: Names the field, its value and the remedy.
        """
        if self.kind == "zca" and self.components:
            raise UserError(f"Whitening.components = {self.components}: zca keeps all pixels; leave it out")


@declared
class Ladder:
    """Settings shared by all rungs of a study; `rung(width)` gives the model.

    Depth follows 6·sqrt(width/256), rounded, so that it grows with the width and width 256 has the original's
    six layers. From width 32 up, heads are 32 wide, as in the original.
    """

    num_pixels: Count = 4096
    patch_size: Count = 16
    stride: Natural = 0
    tokenizer: Literal["conv1d", "sliding"] = "conv1d"
    positions: Literal["learned", "rope", "none"] = "learned"
    dropout: Fraction = 0.1
    attention_dropout: Fraction = 0.1
    whitening: Whitening | None = None

    def rung(self, width: int, num_outputs: int = 1) -> ModelConfig:
        """The model of one rung, with `num_outputs` labels.

        Raises:
            UserError: The width is not a multiple of its number of heads (a multiple of 32 above 32 always is).
        """
        whitening = self.whitening
        return ModelConfig(
            num_pixels=self.num_pixels,
            patch_size=self.patch_size,
            stride=self.stride,
            tokenizer=self.tokenizer,
            positions=self.positions,
            width=width,
            depth=max(1, round(REFERENCE_DEPTH * (width / REFERENCE_WIDTH) ** 0.5)),
            num_heads=max(1, width // HEAD_WIDTH),
            mlp_width=4 * width,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
            num_outputs=num_outputs,
            whitening_components=0 if whitening is None else whitening.components or self.num_pixels,
            whitening_trained=whitening is not None and whitening.frozen_epochs is not None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterCount:
    """Exact numbers of parameters. `reach_loss` counts the trained ones and is the N of the laws.

    `total` also counts a whitening map that is never trained. `non_embedding` excludes the tokenizer, the class token,
    the positions and the whitening map.
    """

    reach_loss: int
    non_embedding: int
    total: int


def count_parameters(config: ModelConfig) -> ParameterCount:
    """Count the parameters of a SpecViT from its dimensions."""
    width = config.width
    whitening = config.whitening_components * (config.num_pixels + 1)
    positions = config.num_tokens * width if config.positions == "learned" else 0
    embedding = width * (config.patch_size + 1) + width + positions
    attention = 4 * (width * width + width)
    mlp = 2 * width * config.mlp_width + config.mlp_width + width
    norms = 4 * width
    non_embedding = config.depth * (attention + mlp + norms) + 2 * width + config.num_outputs * (width + 1)
    reach_loss = embedding + non_embedding + (whitening if config.whitening_trained else 0)
    return ParameterCount(
        reach_loss=reach_loss,
        non_embedding=non_embedding,
        total=embedding + non_embedding + whitening,
    )


def forward_flops(config: ModelConfig) -> int:
    """Floating-point operations of one spectrum's forward pass: two per multiply-add of every matrix product.

    Element-wise work (norms, activations, softmax) is not counted, as in `torch.utils.flop_counter`.
    """
    tokens, width = config.num_tokens, config.width
    projections = 4 * width * width + 2 * width * config.mlp_width
    attention = 2 * tokens * width
    layers = 2 * config.depth * tokens * (projections + attention)
    return _whitening_flops(config) + _tokenizer_flops(config) + layers + 2 * width * config.num_outputs


def train_flops(config: ModelConfig, samples_seen: int) -> int:
    """Floating-point operations of training on `samples_seen` spectra: forward, plus twice that for backward.

    The first trained map, the tokenizer or the whitening, needs no gradient with respect to its input, which saves a third
    of its cost; a frozen whitening needs no backward pass. One that is frozen only at first is counted as always trained.
    """
    whitening, tokenizer = _whitening_flops(config), _tokenizer_flops(config)
    saved = whitening if config.whitening_trained else 2 * whitening + tokenizer
    return samples_seen * (3 * forward_flops(config) - saved)


def _tokenizer_flops(config: ModelConfig) -> int:
    return 2 * config.num_patches * config.patch_size * config.width


def _whitening_flops(config: ModelConfig) -> int:
    return 2 * config.num_pixels * config.whitening_components
