"""Dropout with cheap random numbers on the CPU, and attention that uses it.

PyTorch draws a CPU's dropout masks one number at a time, which takes as long as all matrix products in bf16. Here each
64-bit draw of the same generator decides four elements, and attention processes the batch in pieces that fit in the
processor's cache. On a GPU both use PyTorch's own kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

try:  # noqa: SIM105  # transformers requires imports of hub code unless in a `try`
    from jaxtyping import Float, UInt8
except ImportError:
    pass

LEVELS = 2**16
"""Drop probabilities are rounded to multiples of 1/65,536: 16 random bits decide each element."""

PIECE = 2**19
"""Maximum number of attention weights computed at a time (at least those of one spectrum): about a megabyte in bf16."""


class Dropout(nn.Module):
    """`torch.nn.Dropout`, faster on the CPU; there `p` is rounded to a multiple of 2⁻¹⁶."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Zero each element with probability `p` and scale the others by 1/(1 − p), in training only."""
        if not self.training or self.p == 0.0:
            return values
        if values.device.type != "cpu":
            return functional.dropout(values, self.p)
        return (values * keep_mask(values.shape, self.p)).mul_(_scale(self.p))


def attention(
    query: Float[Tensor, "batch head token channel"],
    key: Float[Tensor, "batch head token channel"],
    value: Float[Tensor, "batch head token channel"],
    dropout: float,
) -> Float[Tensor, "batch head token channel"]:
    """Softmax attention, softmax(query·keyᵀ/√channels)·value, with dropout of its weights (0 in evaluation)."""
    # PyTorch's fused attention for the CPU does not support dropout, and trains more slowly in 16 bits.
    if query.device.type == "cpu" and torch.is_grad_enabled() and (dropout > 0 or query.dtype == torch.bfloat16):
        return _PiecewiseAttention.apply(query, key, value, dropout)
    return functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout)


def keep_mask(shape: tuple[int, ...] | torch.Size, p: float) -> UInt8[Tensor, "*shape"]:
    """Independent draws of 1 with probability 1 − p, else 0, from PyTorch's default CPU generator.

    Integers rather than booleans: multiplying by them is four times as fast.
    """
    size = torch.Size(shape).numel()
    # Start at the lowest 64-bit integer: without this bound PyTorch leaves the sign bit zero.
    draws = torch.empty(-(-size // 4), dtype=torch.int64).random_(-(2**63), None)
    kept = torch.empty(size, dtype=torch.uint8)
    return torch.ge(draws.view(torch.int16)[:size], _dropped(p) - LEVELS // 2, out=kept).view(shape)


def _dropped(p: float) -> int:
    return round(p * LEVELS)


def _scale(p: float) -> float:
    return LEVELS / (LEVELS - _dropped(p))


def _pieces(weights: Tensor) -> Iterator[slice]:
    rows = max(1, PIECE // weights[0].numel())
    return (slice(start, start + rows) for start in range(0, len(weights), rows))


class _PiecewiseAttention(torch.autograd.Function):
    """Attention over a few spectra at a time; saves the weights before dropout and their mask for the backward pass."""

    @staticmethod
    @torch.autocast("cpu", enabled=False)
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        batch, heads, tokens, channels = query.shape
        ctx.temperature, ctx.scale, ctx.dropout = channels**-0.5, _scale(dropout), dropout > 0
        weights = query.new_empty(batch, heads, tokens, tokens)
        kept = torch.empty(weights.shape if dropout else 0, dtype=torch.uint8)
        out = torch.empty_like(query)
        for rows in _pieces(weights):
            used = torch.softmax(torch.matmul(query[rows] * ctx.temperature, key[rows].mT), dim=-1)
            weights[rows] = used
            if dropout:
                kept[rows] = keep_mask(used.shape, dropout)
                used *= kept[rows]
            out[rows] = torch.matmul(used, value[rows])
        out.mul_(ctx.scale)
        ctx.save_for_backward(query, key, value, weights, kept, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, weights, kept, out = ctx.saved_tensors
        by_query, by_key, by_value = (torch.empty_like(query) for _ in range(3))
        # The softmax's backward pass needs the sums over keys of weight · d(loss)/d(weight), including dropped ones;
        # they equal the sums over channels of output · d(loss)/d(output).
        sums = (grad * out).sum(dim=-1, keepdim=True)
        for rows in _pieces(weights):
            scaled, used = grad[rows] * ctx.scale, weights[rows]
            by_weights = torch.matmul(scaled, value[rows].mT)
            if ctx.dropout:
                used = used * kept[rows]
                by_weights *= kept[rows]
            by_value[rows] = torch.matmul(used.mT, scaled)
            by_logits = by_weights.sub_(sums[rows]).mul_(weights[rows]).mul_(ctx.temperature)
            by_query[rows] = torch.matmul(by_logits, key[rows])
            by_key[rows] = torch.matmul(by_logits.mT, query[rows])
        return by_query, by_key, by_value, None
