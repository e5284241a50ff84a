"""The training loop in plain PyTorch: train, evaluate, checkpoint, resume. It knows its host only through `Context`."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import gc
import math
import time
from typing import Any

from scaling.data.batches import (
    EvaluationSplit,
    Standardisation,
    Worker,
    fit_whitening,
    training_batches,
)
from scaling.training.evaluate import predict, score, score_detail
from scaling.training.memory import step_bytes
from scaling.training.metrics import Classified, Detail, Scores
from scaling.training.recipe import samples_seen
from scaling.training.schedule import Schedule
from scaling.training.state import Progress, State, fits
from scaling.training.step import Stepper
from scaling.training.task import Context, Outcome, Status, Task


def train(task: Task, context: Context) -> Outcome:
    """Train one trial to the end of its budget, resuming from its last checkpoint if there is one.

    The best weights by validation error (the earliest in a tie) are scored on the test split: by the MAE of the study's
    label, or by the error rate of a classification. A non-finite loss or validation error ends the trial as
    "diverged", a hopeless one ends as "pruned". On a CPU the same task gives bit-identical results, interrupted or not.

    Raises:
        UserError: The data cannot be used, such as a damaged shard; one worker may raise it while others wait.
    """
    trainer = _Trainer(task, context)
    try:
        with contextlib.closing(trainer.batches):
            return trainer.train()
    finally:
        del trainer
        if context.world > 1 or context.device.type == "cuda":
            # DistributedDataParallel has reference cycles: collect it, and its memory, before its process group ends.
            gc.collect()


class _Trainer:
    """One worker's part of a trial."""

    def __init__(self, task: Task, context: Context) -> None:
        self.task, self.context, self.recipe = task, context, task.recipe
        self.worker = Worker(
            cache_root=task.cache_root,
            device=context.device,
            rank=context.rank,
            world=context.world,
            device_share=context.device_share,
            reserved=self._reserved(),
        )
        self.standardisation = Standardisation.of(task.shards, task.rules)
        self.batches = training_batches(
            task.shards,
            task.rules,
            task.num_spectra,
            task.recipe.batch_size,
            seed=task.seed,
            worker=self.worker,
            access=task.access,
        )
        self.stepper = Stepper(
            task.model,
            task.recipe,
            self.batches,
            lr=task.lr,
            seed=task.seed,
            micro_batch=context.micro_batch,
            compiled=context.compiled,
            classify=task.rules.boundary is not None,
            **self._whitening(),
        )
        self.val = EvaluationSplit.load(task.shards, task.rules, "val", self.worker)
        self.runs = task.recipe.runs(task.num_spectra)
        self.progress, self.error = Progress(), ""

    def _reserved(self) -> int:
        """Bytes of GPU memory that the spectra must leave for the step."""
        if self.context.device.type != "cuda":
            return 0
        rows = -(-self.recipe.batch_size // self.context.world)
        rows = min(self.context.micro_batch or rows, rows)
        return step_bytes(self.task.model, self.recipe.precision, rows, gpu=True).reserved

    def _whitening(self) -> dict[str, Any]:
        task, rule = self.task, self.task.whitening
        if rule is None:
            return {}
        fitted = fit_whitening(task.shards, task.rules, rule.kind, rule.components, self.worker)
        return {"whitening": fitted, "frozen_epochs": rule.frozen_epochs}

    def train(self) -> Outcome:
        """Train all runs of the trial, shortest first; returns the outcome of the last."""
        self._resume(self.context.load())
        while True:
            run, last = self.runs[self.progress.run], self.progress.run == len(self.runs) - 1
            status = self._train_run(run, forks=not last)
            outcome = self._conclude(run, status)
            if status != "done" or last:
                return outcome
            self.context.branch(outcome)
            self._return_to_fork()

    def _train_run(self, run: Schedule, *, forks: bool) -> Status:
        """Take the remaining steps of a run, or end it early; the status is not saved, as any state can resume."""
        progress, stepper = self.progress, self.stepper
        evaluate_after, hopeless = self.recipe.evaluation_steps(run), self.context.hopeless
        started = time.perf_counter()
        while progress.step < run.total:
            stepper.step(progress.step, run)
            progress.step += 1
            if forks and progress.step == run.fork:
                seconds = progress.train_seconds + time.perf_counter() - started
                spent = {"train_seconds": seconds, "shared_seconds": seconds, "eval_seconds": progress.eval_seconds}
                progress.fork = {"step": run.fork, "spent": spent, **copy.deepcopy(stepper.state())}
            if progress.step not in evaluate_after:
                continue
            train_loss, trained = stepper.mean_loss(), time.perf_counter()  # reading the loss synchronises the device
            (now, _), ended = self._score_val(), time.perf_counter()
            progress.train_seconds += ended - started
            progress.eval_seconds += ended - trained
            started = ended
            if reason := self._why_diverged(now.error, train_loss):
                self.error = f"{reason} by step {progress.step} of {run.total} at lr {self.task.lr:g}"
                return "diverged"
            self._keep_best(run, now.error)
            if hopeless and (reason := hopeless.reason(progress.step, progress.best_error)):
                self.error = reason
                return "pruned"
            self.context.report(self._metrics(now, train_loss), self._state())
        return "done"

    def _why_diverged(self, error: float, train_loss: float | None) -> str:
        if not (math.isfinite(error) and math.isfinite(train_loss or 0.0)):
            return "loss or validation error not finite"
        return "gradients overflow fp16 at any loss scale" if self.stepper.overflows() else ""

    def _keep_best(self, run: Schedule, error: float) -> None:
        progress = self.progress
        if run.selects(progress.step) and error < progress.best_error:
            weights = self.stepper.model.state_dict()
            progress.best_error, progress.best_step = error, progress.step
            progress.best_weights = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}

    def _metrics(self, now: Scores | Classified, train_loss: float | None) -> dict[str, float]:
        progress = self.progress
        more = {"val_r2": now.r2} if isinstance(now, Scores) else {"val_cross_entropy": now.cross_entropy}
        return {
            "step": progress.step,
            "epoch": progress.step / self.batches.steps_per_epoch,
            "budget_share": self.recipe.shares[progress.run],
            "train_loss": math.nan if train_loss is None else train_loss,
            f"val_{self.task.rules.score}": now.error,
            **more,
            "lr": self.stepper.optimizer.param_groups[0]["lr"],
            "train_seconds": progress.train_seconds,
        }

    def _state(self) -> State:
        progress = {field.name: getattr(self.progress, field.name) for field in dataclasses.fields(Progress)}
        return {"progress": progress, **self.stepper.state()}

    def _resume(self, state: State | None) -> None:
        if state is None:
            return
        if fits(state, self._state(), self.stepper.parameters, [run.total for run in self.runs]):
            self.progress = Progress(**state["progress"])
            self.stepper.restore(state)
        else:
            self.context.refuse()

    def _return_to_fork(self) -> None:
        """Restore the state at which the finished run began to decay; the next longer run resumes from it."""
        fork, run = self.progress.fork, self.progress.run + 1
        self.stepper.restore(fork)
        self.progress = Progress(run=run, step=fork["step"], **fork["spent"])

    def _conclude(self, run: Schedule, status: Status) -> Outcome:
        progress, task, applied = self.progress, self.task, self.stepper.applied_steps()
        val, test, test_detail, others = None, None, None, list[tuple[Scores, Scores]]()
        if status == "done":
            self.stepper.model.load_state_dict(progress.best_weights)
            val, val_others = self._score_val()
            test, test_others, test_detail = self._score_test()
            others = list(zip(val_others, test_others, strict=True))
        return Outcome(
            status=status,
            share=self.recipe.shares[progress.run] if status == "done" else 1.0,
            error=self.error,
            val=val,
            test=test,
            others=others,
            test_detail=test_detail,
            best_epoch=progress.best_step / self.batches.steps_per_epoch,
            steps=progress.step,
            samples_seen=samples_seen(progress.step, task.num_spectra, self.recipe.batch_size),
            skipped_steps=progress.step - applied,
            train_seconds=progress.train_seconds,
            eval_seconds=progress.eval_seconds,
            added_seconds=progress.train_seconds - progress.shared_seconds,
            access=self.batches.access,
            weights=progress.best_weights,
            standardisation=self.standardisation,
        )

    def _score_val(self) -> tuple[Scores | Classified, list[Scores]]:
        return score(predict(self.stepper.model, self.val, self.recipe.precision), self.val)

    def _score_test(self) -> tuple[Scores | Classified, list[Scores], Detail | None]:
        """Scores of the whole test split, and its error statistics by bins."""
        test = EvaluationSplit.load(self.task.shards, self.task.rules, "test", self.worker)
        predicted = predict(self.stepper.model, test, self.recipe.precision)
        return *score(predicted, test), score_detail(predicted, test, self.task.shards)
