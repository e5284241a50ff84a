"""`scaling evaluate`: scores of a trained model on any shard set, as in a trial's row, and anchors of a study."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from scaling.console import Counting, not_counting
from scaling.data.batches import DataRules, EvaluationSplit, Worker, evaluation_pin
from scaling.data.batches.cache import map_split
from scaling.data.shards.manifest import Manifest
from scaling.errors import UserError
from scaling.files import Location, json_bytes, plain
from scaling.inference.trained import TrainedModel
from scaling.study.declaration import Study
from scaling.study.store import StudyFolder
from scaling.training.columns import detail_columns, score_columns
from scaling.training.evaluate import predict, score, score_detail

Split = Literal["val", "test"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Scores of a model on a split.

    `scores` uses the names, units and values of a results row: for "test", those of a trial on its study's shards. Standard
    deviations (`_z`) and the mean guess are those of the model's own training labels.
    """

    model: TrainedModel
    shards: Location
    split: Split
    rules: DataRules
    eval_pin: str
    scores: dict[str, Any]
    other_labels: dict[str, dict[str, float]]

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON values; NaN is null."""
        facts = {
            "model": str(self.model.path),
            "name": self.model.name,
            "num_params": self.model.num_params,
            "num_spectra": self.model.about.get("num_spectra"),
            "label": self.rules.target,
            "shards": str(self.shards),
            "split": self.split,
            "noise_level": self.rules.noise_level,
            "eval_draws": self.rules.eval_draws,
            "eval_pin": self.eval_pin,
            "wave_checked": self.model.wave is not None,
        }
        return plain(facts | self.scores | {"other_labels": self.other_labels})

    def to_text(self) -> str:
        """The scores as text."""
        found, of = self.scores, self.split
        draws = f", mean of {self.rules.eval_draws} noise draws" if self.rules.eval_draws > 1 else ""
        lines = [
            self.model.describe(),
            f"{self.split} split of {self.shards}: {found[f'num_{of}']:,} spectra at noise level {self.rules.noise_level:g}{draws}; "
            f"evaluation {self.eval_pin}",
        ]
        if self.model.wave is None:
            lines.append("  the model's wavelengths are unknown: only the number of pixels was compared")
        if self.rules.boundary is not None:
            return "\n".join([*lines, f"{self.rules.target}: error rate {found[f'{of}_error_rate']:.4f}"])
        lines.append(
            f"{self.rules.label}: MAE {found[f'{of}_mae_dex']:.4f} ± {found[f'{of}_mae_sem_dex']:.4f} dex "
            f"({found[f'{of}_mae_z']:.4f} ± {found[f'{of}_mae_sem_z']:.4f} z), R² {found[f'{of}_r2']:.4f}, RMSE "
            f"{found[f'{of}_rmse_dex']:.4f} dex, bias {found[f'{of}_bias_dex']:+.4f} dex, 90 % of errors below "
            f"{found[f'{of}_p90_dex']:.4f} dex; the training mean alone: MAE {found[f'{of}_guess_mae_dex']:.4f} dex"
        )
        for column, name in (("by_snr", "signal to noise"), ("by_label", self.rules.label)):
            lines.append(f"  by {name}: spectra, MAE ± its standard error, bias [dex]")
            lines += [
                f"    {bin['low']:8.4g} to {bin['high']:<8.4g} {bin['count']:6d}  {bin['mae_dex']:.4f} ± {bin['sem_dex']:.4f}  "
                f"{bin['bias_dex']:+.4f}"
                for bin in found[f"{of}_{column}"]
            ]
        for name, other in self.other_labels.items():
            lines.append(f"{name}: MAE {other[f'{of}_mae']:.4g}, R² {other[f'{of}_r2']:.4f} (in its own unit)")
        return "\n".join(lines)


def evaluate(
    model: TrainedModel,
    shards: Location,
    split: Split,
    rules: DataRules,
    *,
    device: torch.device,
    cache_root: Path,
    counting: Counting = not_counting,
) -> Evaluation:
    """Score a model on a split, as the training loop scores its best weights.

    Args:
        model: The model; it is moved to the device.
        shards: Any shard set on the model's wavelength grid that has its labels.
        split: "val" or "test".
        rules: The model's rules, possibly with other noise.
        device: The device to use.
        cache_root: The node's cache of memory maps.
        counting: Shows the progress of filling the node's cache, then of scoring.

    Raises:
        UserError: The spectra are on another grid or lack a label, or a prediction is not finite.
    """
    manifest = Manifest.load(shards)
    model.check_wave(manifest.wave, shards)
    for name in rules.labels:
        manifest.label(name)
    worker = Worker(cache_root=cache_root, device=device)
    with counting("shards into the node's cache") as progress:
        map_split(shards, split, manifest.num_rows(split), cache_root, progress=progress).close()
    noisy = EvaluationSplit.load(shards, rules, split, worker, model.standardisation)
    with counting("spectra scored") as progress:
        predicted = predict(model.model.to(device), noisy, model.precision_on(device), progress=progress)
    first, others = score(predicted, noisy)
    if not math.isfinite(first.error):
        raise UserError(f"{model.path}: its answers for the {split} split of {shards} are not finite: no score")
    detail = score_detail(predicted, noisy, shards, split)
    z = 1.0 / float(model.standardisation.label_std[0])
    return Evaluation(
        model=model,
        shards=shards,
        split=split,
        rules=rules,
        eval_pin=evaluation_pin(shards, rules),
        scores=score_columns(split, first, z) | detail_columns(split, first, detail, z),
        other_labels={
            name: {f"{split}_{key}": getattr(other, key) for key in ("mae", "r2", "rmse", "bias")}
            for name, other in zip(rules.other_labels, others, strict=True)
        },
    )


def rules_of_study(model: TrainedModel, study: Study) -> DataRules:
    """The model's rules with the evaluation noise of a study, so that their scores are comparable.

    Raises:
        UserError: The study and the model predict different quantities.
    """
    asked = study.data.rules
    if asked.target != model.rules.target:
        raise UserError(
            f"study {study.name} is about {asked.target}, {model.path} about {model.rules.target}: its error is no anchor of that study"
        )
    if asked.boundary is not None:
        raise UserError(f"study {study.name}: a classification, which has no figures of error over N and D to anchor")
    return dataclasses.replace(
        model.rules, eval_seed=asked.eval_seed, noise_level=asked.noise_level, eval_draws=asked.eval_draws
    )


def check_anchor(folder: StudyFolder, shards: Location, rules: DataRules, name: str, num_spectra: int | None) -> None:
    """Check before scoring whether a score on these shards can be an anchor of a study.

    Raises:
        UserError: The study has no rows, or they were scored on other spectra or other noise, or D is unknown.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise UserError(
            f"--name {name!r}: give at most 100 letters, digits, dots, dashes, underscores; it names a file"
        )
    if num_spectra is None or num_spectra < 1:
        raise UserError(
            "the anchor's D, the number of spectra the model was trained on, is not known: give --num-spectra"
        )
    pins, ours = {row.eval_pin for row in folder.rows()}, evaluation_pin(shards, rules)
    if not pins:
        raise UserError(
            f"{folder.store.locate(folder.name)}: no rows yet, so nothing to compare with; run the study first"
        )
    if pins != {ours}:
        raise UserError(
            f"{shards}: evaluation {ours}, but the rows of {folder.store.locate(folder.name)} have {', '.join(sorted(pins))}: "
            "not comparable; give the study's own shards, and no other noise"
        )


def write_anchor(folder: StudyFolder, evaluation: Evaluation, name: str, num_spectra: int) -> str:
    """Store a test score beside a study's results, for its report; returns its location."""
    found = evaluation.to_json()
    names = (
        "num_params",
        "label",
        "test_mae_dex",
        "test_mae_sem_dex",
        "test_mae_z",
        "test_r2",
        "num_test",
        "eval_pin",
        "model",
    )
    anchor = {"name": name, "num_spectra": num_spectra, **{key: found[key] for key in names}}
    return folder.write_anchor(name, json_bytes(anchor))
