"""Construction of the results rows of trials and baselines; every column is filled here."""

from __future__ import annotations

import functools
import json
import math
import platform
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from scaling.baselines.fitted import Fitted
from scaling.data.shards.manifest import Manifest
from scaling.files import Location
from scaling.model import ladder
from scaling.results import Row
from scaling.study.declaration import Study
from scaling.training.columns import detail_columns, score_columns
from scaling.training.device import Device
from scaling.training.metrics import Classified, Detail, Scores
from scaling.training.task import Outcome

if TYPE_CHECKING:
    from scaling.sweep.baselines import BaselineTask
    from scaling.sweep.trial import Trial


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """The scores of a finished run, as in `Outcome`; NaN columns if there are none."""

    val: Scores | Classified | None = None
    test: Scores | Classified | None = None
    others: list[tuple[Scores, Scores]] | None = None
    detail: Detail | None = None

    def columns(self, study: Study, shards: Location) -> dict[str, Any]:
        """The columns that describe the evaluation data, and the scores."""
        rules = study.data.rules
        label = Manifest.load(shards).labels[rules.label]
        z = 1.0 / label.std if self.test else math.nan
        detail = detail_columns("test", self.test, self.detail, z)
        return {
            "label": rules.target,
            "label_mean": label.mean,
            "label_std": label.std,
            **score_columns("val", self.val, z),
            **score_columns("test", self.test, z),
            **{name: json.dumps(value) if isinstance(value, list) else value for name, value in detail.items()},
            "other_labels": _other_labels(rules.other_labels, self.others or []),
            "eval_draws": rules.eval_draws,
        }


def trial_row(trial: Trial, outcome: Outcome | None, *, error: str, device: Device, wall_seconds: float) -> Row:
    """The row of a trial that ended with this outcome or failed with this error."""
    study, cell = trial.study, trial.cell
    config, recipe, rules = study.model(cell.width), study.recipe, study.data.rules
    placement, count = study.placement(cell), ladder.count_parameters(config)
    seen = outcome.samples_seen if outcome else 0
    added, scoring = (outcome.added_seconds, outcome.eval_seconds) if outcome else (math.nan, math.nan)
    seconds = outcome.train_seconds - scoring if outcome else math.nan
    flops, speed = float(ladder.train_flops(config, seen)), device.peak_flops * placement.workers
    scored = (
        Scored(val=outcome.val, test=outcome.test, others=outcome.others, detail=outcome.test_detail)
        if outcome
        else Scored()
    )
    return Row(
        study=study.name,
        cell=cell.key,
        trial=trial.key,
        fingerprint=trial.fingerprint,
        family="specvit",
        rung=f"w{cell.width}",
        num_params=count.reach_loss,
        num_params_nonembedding=count.non_embedding,
        num_params_total=count.total,
        num_spectra=cell.num_spectra,
        held_out=study.held_out(cell),
        epochs=seen / cell.num_spectra,
        steps=outcome.steps if outcome else 0,
        samples_seen=seen,
        budget=recipe.budget.kind,
        budget_share=outcome.share if outcome else 1.0,
        schedule=recipe.schedule,
        noise=rules.noise,
        train_flops=flops,
        lr=trial.lr,
        lr_bracketed=False,
        weight_decay=recipe.weight_decay,
        batch_size=recipe.batch_size,
        seed=cell.seed,
        precision=recipe.precision,
        **scored.columns(study, trial.shards),
        best_epoch=outcome.best_epoch if outcome else math.nan,
        eval_pin=trial.eval_pin,
        status=outcome.status if outcome else "failed",
        error=error,
        access=outcome.access if outcome else trial.access,
        host=placement.host,
        workers=placement.workers,
        device=device.name,
        skipped_steps=outcome.skipped_steps if outcome else 0,
        device_seconds=added * placement.workers * (placement.gpus or placement.cpus),
        wall_seconds=wall_seconds,
        eval_seconds=scoring,
        samples_per_second=seen / seconds if seconds else math.nan,
        peak_flops=device.peak_flops,
        mfu=flops / (seconds * speed) if seconds else math.nan,
        code_commit=trial.code_commit,
        versions=_versions(),
    )


def baseline_row(task: BaselineTask, num_spectra: int, fitted: Fitted | None, scored: Scored, error: str = "") -> Row:
    """The row of a baseline at a number of spectra. `weight_decay` is its L2 penalty, `steps` its number of trees.

    It has no batches and no schedule; `budget` and `noise` are the study's, for comparison with its rows.
    """
    study, cell = task.study, task.cell_of(num_spectra)
    seconds, cpus = fitted.seconds if fitted else math.nan, task.baseline.cpus
    params, seen = (fitted.num_params, fitted.samples_seen) if fitted else (0, 0)
    return Row(
        study=study.name,
        cell=cell.key,
        trial=cell.trial(0),
        fingerprint=task.fingerprints[num_spectra],
        family=cell.family,
        rung=cell.family,
        num_params=params,
        num_params_nonembedding=params,
        num_params_total=params,
        num_spectra=num_spectra,
        held_out=False,
        epochs=seen / num_spectra,
        steps=fitted.steps if fitted else 0,
        samples_seen=seen,
        budget=study.recipe.budget.kind,
        budget_share=1.0,
        schedule="none",
        noise=study.data.rules.noise,
        train_flops=fitted.train_flops if fitted else math.nan,
        lr=fitted.lr if fitted else math.nan,
        lr_bracketed=False,
        weight_decay=fitted.penalty if fitted else math.nan,
        batch_size=0,
        seed=cell.seed,
        precision="fp64",
        **scored.columns(study, task.shards),
        best_epoch=math.nan,
        eval_pin=task.eval_pin,
        status="done" if fitted else "failed",
        error=error,
        access="streamed",
        host="process",
        workers=1,
        device="cpu",
        skipped_steps=0,
        device_seconds=seconds * cpus,
        wall_seconds=seconds,
        eval_seconds=0.0,
        samples_per_second=math.nan,
        peak_flops=math.nan,
        mfu=math.nan,
        code_commit=task.code_commit,
        versions=_versions(),
    )


def _other_labels(names: tuple[str, ...], found: list[tuple[Scores, Scores]]) -> str:
    """JSON of the scores of the other labels, each in its own unit."""
    scores = {}
    for name, (val, test) in zip(names, found, strict=bool(found)):
        values = {"val_mae": val.mae, "test_mae": test.mae, "test_r2": test.r2}
        values |= {"test_rmse": test.rmse, "test_bias": test.bias}
        scores[name] = {key: value if math.isfinite(value) else None for key, value in values.items()}
    return json.dumps(scores)


@functools.cache
def _versions() -> str:
    names = ("ray", "torch", "optuna", "numpy", "lightgbm")
    return json.dumps({"python": platform.python_version(), **{name: version(name) for name in names}})
