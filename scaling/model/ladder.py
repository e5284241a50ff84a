"""The ladder of model sizes: one dial, the width, gives every other dimension; exact parameter and FLOP counts."""

from __future__ import annotations

from dataclasses import dataclass

from scaling.model.specvit import REFERENCE_WIDTH, ModelConfig

REFERENCE_DEPTH = 6
HEAD_WIDTH = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """What all rungs of a study share; `rung(width)` gives the model.

    Depth follows 6·sqrt(width/256), rounded: it and the width grow together, and width 256 is the original's
    six layers. Heads are 32 wide from width 32 up, as the original's.
    """

    num_pixels: int = 4096
    patch_size: int = 16
    dropout: float = 0.1
    attention_dropout: float = 0.1

    def rung(self, width: int) -> ModelConfig:
        """The model of one rung.

        Raises:
            UserError: if the width is not a multiple of its number of heads (a multiple of 32 above 32 always is).
        """
        return ModelConfig(
            num_pixels=self.num_pixels,
            patch_size=self.patch_size,
            width=width,
            depth=max(1, round(REFERENCE_DEPTH * (width / REFERENCE_WIDTH) ** 0.5)),
            num_heads=max(1, width // HEAD_WIDTH),
            mlp_width=4 * width,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterCount:
    """Exact numbers of parameters. `reach_loss` is the N of the laws; there are no others in our model."""

    reach_loss: int
    non_embedding: int
    with_pooler: int


def count_parameters(config: ModelConfig) -> ParameterCount:
    """Count the parameters of a SpecViT from its dimensions.

    `non_embedding` leaves out the tokenizer, the class token and the positions; `with_pooler` adds the pooler of
    Hugging Face's `ViTModel`, which the original's published 4,875,521 includes although no gradient reaches it.
    """
    width = config.width
    embedding = width * (config.patch_size + 1) + width * (config.num_tokens + 1)
    attention = 4 * (width * width + width)
    mlp = 2 * width * config.mlp_width + config.mlp_width + width
    norms = 4 * width
    non_embedding = config.depth * (attention + mlp + norms) + 2 * width + config.num_outputs * (width + 1)
    return ParameterCount(
        reach_loss=embedding + non_embedding,
        non_embedding=non_embedding,
        with_pooler=embedding + non_embedding + width * width + width,
    )


def forward_flops(config: ModelConfig) -> int:
    """Floating-point operations of one spectrum's forward pass: two for each multiply-add of every matrix product.

    Element-wise work (norms, activations, softmax) is not counted, as in `torch.utils.flop_counter`.
    """
    tokens, width = config.num_tokens, config.width
    projections = 4 * width * width + 2 * width * config.mlp_width
    attention = 2 * tokens * width
    layers = 2 * config.depth * tokens * (projections + attention)
    return _tokenizer_flops(config) + layers + 2 * width * config.num_outputs


def train_flops(config: ModelConfig, samples_seen: int) -> int:
    """Floating-point operations of training on `samples_seen` spectra: forward and twice that backward.

    The tokenizer needs no gradient of its input, which saves one third of its own share.
    """
    return samples_seen * (3 * forward_flops(config) - _tokenizer_flops(config))


def _tokenizer_flops(config: ModelConfig) -> int:
    return 2 * config.num_patches * config.patch_size * config.width
