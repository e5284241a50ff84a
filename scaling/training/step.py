"""One worker's model, optimiser and data, and one optimiser step on its share of a global batch."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from scaling.data.batches import LinearMap, TrainingBatches
from scaling.data.seeds import stable_seed
from scaling.model.specvit import ModelConfig, SpecViT
from scaling.training.evaluate import autocast
from scaling.training.metrics import all_reduce
from scaling.training.recipe import Compiled, Recipe
from scaling.training.schedule import Schedule

LEAST_SCALE = 2.0**-4
"""Minimum fp16 loss scale. It starts at 2¹⁶ and is halved at each skipped step."""


class Stepper:
    """One worker's mutable state: model, optimiser, gradient scaler.

    With `micro_batch`, a worker's share of a batch goes through the model in chunks of that many rows with gradient
    accumulation: the same step to rounding (except for dropout masks), in less memory. `compiled` uses `torch.compile`; with
    "reduce-overhead" a GPU's kernels are captured in CUDA graphs and launched together, as launches limit small models.
    With `classify`, the loss is binary cross-entropy with the model's output as a logit, instead of the recipe's loss.
    `whitening` initialises the model's whitening map; for the first `frozen_epochs` passes, or always (None), it is
    excluded from updates, including the gradient norm and weight decay.
    """

    def __init__(
        self,
        config: ModelConfig,
        recipe: Recipe,
        batches: TrainingBatches,
        *,
        lr: float,
        seed: int,
        micro_batch: int | None = None,
        compiled: Compiled = False,
        classify: bool = False,
        whitening: LinearMap | None = None,
        frozen_epochs: int | None = 0,
    ) -> None:
        self.recipe, self.batches, self.lr, self.seed = recipe, batches, lr, seed
        self.micro_batch, self.classify, self.worker = micro_batch, classify, batches.worker
        torch.manual_seed(stable_seed("weights", seed))
        self.model = SpecViT(config)
        self._frozen = list(self.model.whitening.parameters()) if whitening is not None else []
        self._frozen_steps = math.inf if frozen_epochs is None else frozen_epochs * batches.steps_per_epoch
        if whitening is not None:
            self.model.whitening.load_state_dict({"weight": whitening.weight, "bias": whitening.bias})
            self.model.whitening.requires_grad_(frozen_epochs is not None)
        self.model.to(self.worker.device)
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=lr, weight_decay=recipe.weight_decay, betas=recipe.betas, fused=True
        )
        self.scaler = torch.amp.GradScaler(self.worker.device.type, enabled=recipe.precision == "fp16")
        self._forward: Callable[[Tensor], Tensor] = _compile(self.model, compiled) if compiled else self.model
        if self.worker.world > 1:
            assert isinstance(self._forward, nn.Module)
            ids = [self.worker.device] if self.worker.device.type == "cuda" else None
            self._forward = DistributedDataParallel(self._forward, ids, gradient_as_bucket_view=True)
        self._dropout = config.dropout > 0 or config.attention_dropout > 0
        self._loss_sum = torch.zeros((), device=self.worker.device)
        self._loss_rows: Tensor | int = 0

    def state(self) -> dict[str, Any]:
        """Everything needed to resume."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore a saved state."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])

    def applied_steps(self) -> int:
        """Number of optimiser updates, not counting fp16 steps skipped because of gradient overflow."""
        state = self.optimizer.state.get(self.model.head.bias)  # never frozen
        return int(state["step"]) if state else 0

    def step(self, step: int, schedule: Schedule) -> None:
        """Train on this worker's share of the step's batch; all workers end with the same weights.

        Nothing here synchronises with a GPU: losses are accumulated on the device and read at the next evaluation.
        """
        if self._dropout:  # seeded per step, so that a resumed run draws the same masks
            torch.manual_seed(stable_seed("dropout", self.seed, step, self.worker.rank))
        rate = self.lr * schedule.factor(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        flux, labels = self.batches.batch(step)
        rows = self.batches.global_rows(step)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._backward(flux, labels, rows)
        if step < self._frozen_steps:
            for parameter in self._frozen:
                parameter.grad = None
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip_norm, foreach=True)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        weight: Tensor | int = rows
        if self.scaler.is_enabled():  # a step with gradient overflow is skipped; its loss may overflow too
            weight = rows * norm.isfinite()
            loss = torch.where(norm.isfinite(), loss, 0.0)
        self._loss_sum += loss * weight
        self._loss_rows += weight

    def _backward(self, flux: Tensor, labels: Tensor, rows: int) -> Tensor:
        """Accumulate this share's gradients of the mean loss over the global batch; returns its part of that mean."""
        # A worker with an empty share of a short batch still takes part in the gradient all-reduce.
        size = self.micro_batch or max(1, len(labels))
        starts = range(0, max(1, len(labels)), size)
        total = torch.zeros_like(self._loss_sum)
        for start in starts:
            part, wanted = flux[start : start + size], labels[start : start + size]
            with self._without_all_reduce() if start != starts[-1] else contextlib.nullcontext():
                with autocast(self.worker.device, self.recipe.precision):
                    predicted = self._forward(part if len(part) else flux.new_zeros(1, flux.shape[1]))
                loss = self._loss(predicted[: len(wanted)].float(), wanted) / (rows * wanted.shape[1])
                # DDP averages over the workers; the global mean needs the sum.
                self.scaler.scale(loss * self.worker.world).backward()
            total = total + loss.detach()
        return total

    def _without_all_reduce(self) -> Any:
        forward = self._forward
        return forward.no_sync() if isinstance(forward, DistributedDataParallel) else contextlib.nullcontext()

    def _loss(self, predicted: Tensor, wanted: Tensor) -> Tensor:
        if self.classify:
            return functional.binary_cross_entropy_with_logits(predicted, wanted, reduction="sum")
        if self.recipe.loss == "huber":
            return functional.huber_loss(predicted, wanted, reduction="sum", delta=self.recipe.huber_delta)
        error = predicted - wanted
        return (error.abs() if self.recipe.loss == "l1" else error.square()).sum()

    def mean_loss(self) -> float | None:
        """Mean training loss over all workers since the last call, in normalised label units.

        None if fp16 skipped all steps.
        """
        total, rows = float(all_reduce(self._loss_sum)), int(self._loss_rows)
        self._loss_sum, self._loss_rows = torch.zeros_like(self._loss_sum), 0
        return total / rows if rows else None

    def overflows(self) -> bool:
        """Whether fp16 has skipped so many steps that no loss scale can help."""
        return self.scaler.is_enabled() and self.scaler.get_scale() < LEAST_SCALE


def _compile(model: SpecViT, compiled: Compiled) -> Callable[[Tensor], Tensor]:
    from torch._inductor import config

    torch.compiler.reset()  # otherwise earlier rungs in this process count towards the recompile limit
    config.compile_threads = torch.get_num_threads()  # default: all CPUs of the node, for each trial on it
    return torch.compile(model, mode="reduce-overhead" if compiled == "reduce-overhead" else None)
