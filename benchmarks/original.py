"""The original study's training step: Hugging Face's ViT layers, eager attention, fp32, an unfused optimiser."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import ViTConfig
from transformers.models.vit.modeling_vit import ViTLayer

from scaling.model.specvit import Layer, ModelConfig, SpecViT

LR, WEIGHT_DECAY, CLIP_NORM = 3e-4, 0.01, 0.5


class OriginalModel(nn.Module):
    """SpecViT on Hugging Face's layers, with weights copied from ours."""

    def __init__(self, config: ModelConfig, ours: SpecViT) -> None:
        super().__init__()
        layers = ViTConfig(
            hidden_size=config.width,
            num_hidden_layers=config.depth,
            num_attention_heads=config.num_heads,
            intermediate_size=config.mlp_width,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.attention_dropout,
            layer_norm_eps=1e-12,
            attn_implementation="eager",
        )
        self.patches = nn.Conv1d(1, config.width, kernel_size=config.patch_size, stride=config.patch_size)
        self.class_token = nn.Parameter(ours.class_token.detach().clone())
        self.positions = nn.Parameter(ours.positions.detach().clone())
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(ViTLayer(layers) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=1e-12)
        self.head = nn.Linear(config.width, config.num_outputs)
        self.patches.load_state_dict(ours.tokenizer.state_dict())
        self.norm.load_state_dict(ours.norm.state_dict())
        self.head.load_state_dict(ours.head.state_dict())
        for theirs, mine in zip(self.layers, ours.layers, strict=True):
            assert isinstance(mine, Layer)
            theirs.load_state_dict(_renamed(mine))

    def forward(self, flux: Tensor) -> Tensor:
        """Predict normalised labels from flux."""
        tokens = self.patches(flux.unsqueeze(1)).transpose(1, 2)
        hidden = torch.cat((self.class_token.expand(len(flux), -1, -1), tokens), dim=1)
        hidden = self.dropout(hidden + self.positions)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.head(self.norm(hidden[:, 0]))


def original_step(model: nn.Module, lr: float = LR) -> Callable[[Tensor, Tensor], float]:
    """Create a function that takes one optimiser step on a batch and returns its loss."""
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=WEIGHT_DECAY, fused=False)

    def step(flux: Tensor, labels: Tensor) -> float:
        optimizer.zero_grad()
        loss = nn.functional.l1_loss(model(flux), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        optimizer.step()
        return loss.item()

    return step


def _renamed(layer: Layer) -> dict[str, Tensor]:
    names = {
        "attention_norm": "layernorm_before",
        "attention_out": "attention.o_proj",
        "mlp_norm": "layernorm_after",
        "mlp_in": "mlp.fc1",
        "mlp_out": "mlp.fc2",
    }
    state = {}
    for kind in ("weight", "bias"):
        parts = getattr(layer.qkv, kind).chunk(3)
        state |= {f"attention.{letter}_proj.{kind}": part for letter, part in zip("qkv", parts, strict=True)}
        state |= {f"{theirs}.{kind}": getattr(getattr(layer, ours), kind) for ours, theirs in names.items()}
    return state
