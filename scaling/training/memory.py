"""Memory use of a training step, estimated before it runs."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from scaling.model.ladder import count_parameters
from scaling.model.specvit import ModelConfig, SpecViT
from scaling.training.device import CONTEXT
from scaling.training.evaluate import EVALUATION_ROWS
from scaling.training.recipe import HALF, Precision

MARGIN = 1.25
"""Safety factor on the estimated step memory, for the allocator's overhead and the libraries' own buffers."""
KEPT = 500_000_000
"""Further bytes that PyTorch's allocator keeps: a step took 0.4 to 0.6 GB more than the estimate on an H200."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBytes:
    """Bytes of a worker's device memory, excluding spectra. Activations and evaluation are estimates.

    `model` is weights, gradients and AdamW's two moments; `activation` is per spectrum, for the `rows` that go through the
    model at a time; `evaluation` is for the spectra scored at a time.
    """

    model: int
    activation: int
    rows: int
    evaluation: int

    @property
    def step(self) -> int:
        """Peak memory of a step, everything included."""
        return self.model + max(self.activation * self.rows, self.evaluation)

    @property
    def reserved(self) -> int:
        """GPU memory to keep free of spectra: the step with a margin, CUDA's context, and what the allocator keeps."""
        return int(MARGIN * self.step) + CONTEXT + KEPT


def step_bytes(
    config: ModelConfig, precision: Precision, rows: int, *, gpu: bool, scored: int | None = None
) -> StepBytes:
    """Memory of a step with `rows` spectra through the model at a time, and at most `scored` spectra to evaluate."""
    activation, copies = activation_bytes(config, precision, gpu)
    count, item = count_parameters(config), 2 if precision in HALF else 4
    each = config.num_tokens * (2 * 4 * config.width + 2 * item * config.mlp_width)
    return StepBytes(
        model=4 * (count.total + 3 * count.reach_loss) + copies,
        activation=activation,
        rows=rows,
        evaluation=each * min(EVALUATION_ROWS, scored or EVALUATION_ROWS),
    )


def activation_bytes(config: ModelConfig, precision: str, gpu: bool, *, fake: bool = True) -> tuple[int, int]:
    """Bytes that one spectrum's forward pass saves for its backward pass, and bytes of 16-bit copies of the weights.

    Counted on fake tensors, which have shapes but no content, as the distinct storages that autograd saves. Exact on a
    CPU. On a GPU, whose kernels save no attention weights, these are excluded; the rest is assumed to be the same.
    """
    one, two = (_saved_bytes(config, precision, gpu, rows, fake) for rows in (1, 2))
    return two - one, max(0, 2 * one - two)


@functools.lru_cache(maxsize=256)
def _saved_bytes(config: ModelConfig, precision: str, gpu: bool, rows: int, fake: bool) -> int:
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not gpu or tensor.shape[-2:] != (config.num_tokens, config.num_tokens):
            saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with torch.device("meta"):
        model = SpecViT(config)
    mode: Any = FakeTensorMode() if fake else torch.enable_grad()
    with mode:
        named = [*model.named_parameters(), *model.named_buffers()]
        own = {name: torch.zeros(value.shape, requires_grad=value.requires_grad) for name, value in named}
        cast_to = torch.bfloat16 if precision in HALF else None  # fp16 takes the same
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", dtype=cast_to, enabled=cast_to is not None),
        ):
            torch.func.functional_call(model, own, (torch.zeros(rows, config.num_pixels),))
        mine = {value.untyped_storage()._cdata for value in own.values()}
    return sum(storage.nbytes() for key, storage in saved.items() if key not in mine)
