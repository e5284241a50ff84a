"""One plain-PyTorch loop: train, evaluate, checkpoint, resume. It knows its host only through a small context."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from scaling.data.batches import Access, training_batches
from scaling.data.bins import SplitBins
from scaling.data.dataset import DataRules, EvaluationSplit, Standardisation
from scaling.data.seeds import stable_seed
from scaling.model.specvit import ModelConfig, SpecViT
from scaling.training.metrics import Detail, Scores, all_reduce, detail, error_sums, gather_rows, scores
from scaling.training.recipe import Recipe, samples_seen

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
State = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Everything that determines one trial's result.

    Of `access` only "streamed" does, whose order is another one.
    """

    shards: Path
    cache_root: Path
    rules: DataRules
    num_spectra: int
    model: ModelConfig
    recipe: Recipe
    lr: float
    seed: int
    access: Access = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What the loop sees of its host.

    `device_share` is the fraction of the device that this trial may take; others may run beside it.
    `report` takes the metrics of an evaluation and the state to resume from, on every worker; the host keeps rank
    0's. `load` gives back the last state, or None.
    """

    rank: int
    world: int
    device: torch.device
    report: Callable[[dict[str, float], State], None]
    load: Callable[[], State | None]
    device_share: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a finished trial leaves behind. Scores are in dex, `z` converts them to label standard deviations."""

    status: Literal["done", "diverged"]
    error: str
    val: Scores | None
    test: Scores | None
    test_detail: Detail | None
    z: float
    best_epoch: float
    steps: int
    samples_seen: int
    skipped_steps: int
    train_seconds: float
    access: str
    weights: dict[str, Tensor]
    standardisation: Standardisation


@dataclass(slots=True)
class _Progress:
    """The part of the state that is neither model nor optimiser."""

    step: int = 0
    best_mae: float = math.inf
    best_step: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    train_seconds: float = 0.0


def train(task: Task, context: Context) -> Outcome:
    """Train one trial to the end of its budget, from its last checkpoint if it has one.

    The best weights by validation MAE are scored on the test split. A loss or validation error that is not finite
    ends the trial as "diverged". On the CPU the same task gives the same bits, whether interrupted or not.

    Raises:
        UserError: if the data cannot be used, such as a damaged shard; one worker may raise it while others wait.
    """
    stepper = _Stepper(task, context)
    with contextlib.closing(stepper.batches):
        return _train(task, context, stepper)


def _train(task: Task, context: Context, stepper: _Stepper) -> Outcome:
    recipe = task.recipe
    progress = stepper.resume(context.load())
    dex = stepper.standardisation.label_scale
    val = stepper.evaluation_split("val")
    total = recipe.budget.steps(task.num_spectra, recipe.batch_size)
    evaluate_after = recipe.evaluation_steps(total)
    started, diverged = time.perf_counter(), False
    while progress.step < total and not diverged:
        stepper.step(progress.step, total)
        progress.step += 1
        if progress.step not in evaluate_after:
            continue
        now, train_loss = scores(evaluate(stepper.model, val, recipe), unit=dex), stepper.mean_loss()
        diverged = not (math.isfinite(train_loss) and math.isfinite(now.mae))
        elapsed, started = time.perf_counter() - started, time.perf_counter()
        progress.train_seconds += elapsed
        if diverged:  # not reported: a checkpoint always holds a finite model
            continue
        if now.mae < progress.best_mae:
            progress.best_mae, progress.best_step = now.mae, progress.step
            progress.best_weights = {name: t.detach().cpu().clone() for name, t in stepper.model.state_dict().items()}
        metrics = {
            "step": progress.step,
            "epoch": progress.step / stepper.batches.steps_per_epoch,
            "train_loss": train_loss,
            "val_mae_dex": now.mae,
            "val_r2": now.r2,
            "lr": stepper.optimizer.param_groups[0]["lr"],
            "train_seconds": progress.train_seconds,
        }
        context.report(metrics, stepper.state(progress))
    return _conclude(task, stepper, progress, val, total, diverged)


def _conclude(
    task: Task, stepper: _Stepper, progress: _Progress, val: EvaluationSplit, total: int, diverged: bool
) -> Outcome:
    dex, recipe = stepper.standardisation.label_scale, task.recipe
    error, best_val, best_test, test_detail = "", None, None, None
    if diverged:
        error = f"loss or validation error not finite by step {progress.step} of {total} at lr {task.lr:g}"
    else:
        skipped = progress.step - stepper.applied_steps()
        stepper.model.load_state_dict(progress.best_weights)
        best_val = scores(evaluate(stepper.model, val, recipe), unit=dex)
        test = stepper.evaluation_split("test")
        predicted = predict(stepper.model, test, recipe)
        best_test = scores(all_reduce(error_sums(predicted, test.labels)), unit=dex)
        test_detail = stepper.test_detail(dex * (predicted.double() - test.labels.double()))
    return Outcome(
        status="diverged" if diverged else "done",
        error=error,
        val=best_val,
        test=best_test,
        test_detail=test_detail,
        z=1.0 / stepper.standardisation.label_std,
        best_epoch=progress.best_step / stepper.batches.steps_per_epoch,
        steps=progress.step,
        samples_seen=samples_seen(progress.step, task.num_spectra, recipe.batch_size),
        skipped_steps=0 if diverged else skipped,
        train_seconds=progress.train_seconds,
        access=stepper.batches.access,
        weights=progress.best_weights,
        standardisation=stepper.standardisation,
    )


class _Stepper:
    """Model, optimiser and data of one worker, and one optimiser step on its share of a global batch."""

    def __init__(self, task: Task, context: Context) -> None:
        device, recipe = context.device, task.recipe
        self.task, self.context = task, context
        self._where: dict[str, Any] = {
            "device": device,
            "cache_root": task.cache_root,
            "rank": context.rank,
            "world": context.world,
        }
        self.standardisation = Standardisation.of(task.shards, task.rules)
        self.batches = training_batches(
            task.shards,
            task.rules,
            task.num_spectra,
            recipe.batch_size,
            seed=task.seed,
            access=task.access,
            device_share=context.device_share,
            **self._where,
        )
        torch.manual_seed(stable_seed("weights", task.seed))
        self.model = SpecViT(task.model).to(device)
        self.parameters = list(self.model.parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=task.lr, weight_decay=recipe.weight_decay, betas=recipe.betas, fused=True
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
        self.parallel: nn.Module = self.model
        if context.world > 1:
            self.parallel = DistributedDataParallel(self.model, [device] if device.type == "cuda" else None)
        self.dropout = task.model.dropout > 0 or task.model.attention_dropout > 0
        self._loss_sum, self._loss_rows = torch.zeros((), device=device), 0

    def evaluation_split(self, split: Literal["val", "test"]) -> EvaluationSplit:
        """This worker's share of a noisy split."""
        return EvaluationSplit.load(self.task.shards, self.task.rules, split, **self._where)

    def test_detail(self, errors: Tensor) -> Detail:
        """What the whole test split's errors tell by bins; `errors` (row,) are those of this worker's share, in dex."""
        task, context = self.task, self.context
        bins = SplitBins.load(task.shards, task.rules.label, "test", task.cache_root)
        errors = gather_rows(errors, rank=context.rank, world=context.world, total=len(bins.snr))
        return detail(errors.cpu().numpy(), bins, self.standardisation.label_mean)

    def state(self, progress: _Progress) -> State:
        """Everything to resume from."""
        return {
            "progress": {field.name: getattr(progress, field.name) for field in dataclasses.fields(progress)},
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def resume(self, state: State | None) -> _Progress:
        """Go back to a state; without one, to the beginning."""
        if state is None:
            return _Progress()
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        return _Progress(**state["progress"])

    def applied_steps(self) -> int:
        """Updates the optimiser made; it does not count fp16 steps skipped because a gradient overflowed."""
        states = list(self.optimizer.state.values())
        return int(states[0]["step"]) if states else 0

    def step(self, step: int, total_steps: int) -> None:
        """Train on this worker's share of the step's batch; all workers end with the same weights."""
        task, recipe, context = self.task, self.task.recipe, self.context
        if self.dropout:  # seeded by the step, so that a resumed run draws what an uninterrupted one does
            torch.manual_seed(stable_seed("dropout", task.seed, step, context.rank))
        factor = recipe.lr_factor(step, total_steps, self.batches.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = task.lr * factor
        flux, labels = self.batches.batch(step)
        global_rows = self.batches.global_rows(step)
        with autocast(context.device, recipe):
            # A worker whose share of a short batch is empty still takes part in the gradient's all-reduce.
            predicted = self.parallel(flux if len(flux) else flux.new_zeros(1, task.model.num_pixels))[: len(labels), 0]
        error = predicted.float() - labels
        loss = (error.abs() if recipe.loss == "l1" else error.square()).sum() / global_rows
        self.optimizer.zero_grad(set_to_none=True)
        # DDP averages over the workers; the global mean needs the sum.
        self.scaler.scale(loss * context.world).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.parameters, recipe.clip_norm, foreach=True)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._loss_sum += loss.detach() * global_rows
        self._loss_rows += global_rows

    def mean_loss(self) -> float:
        """Mean training loss over all workers since the last call, in normalised label units."""
        total = float(all_reduce(self._loss_sum)) / max(1, self._loss_rows)
        self._loss_sum, self._loss_rows = torch.zeros_like(self._loss_sum), 0
        return total


def evaluate(model: nn.Module, split: EvaluationSplit, recipe: Recipe) -> Tensor:
    """Error sums (`metrics.error_sums`) of a split over all workers, in normalised label units."""
    return all_reduce(error_sums(predict(model, split, recipe), split.labels))


def predict(model: nn.Module, split: EvaluationSplit, recipe: Recipe, batch_size: int = 1024) -> Tensor:
    """Predicted labels (row,) of this worker's share of a split, normalised."""
    model.eval()
    predicted = torch.empty_like(split.labels)
    with torch.inference_mode(), autocast(split.flux.device, recipe):
        for start in range(0, len(split.flux), batch_size):
            predicted[start : start + batch_size] = model(split.flux[start : start + batch_size])[:, 0]
    model.train()
    return predicted


def autocast(device: torch.device, recipe: Recipe) -> torch.autocast:
    """The recipe's mixed precision on this device."""
    dtype = AUTOCAST[recipe.precision]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
