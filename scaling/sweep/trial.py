"""One trial: from its position in the study to its row, on any host."""

from __future__ import annotations

import functools
import math
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scaling.data.batches.training import Access
from scaling.data.shards.manifest import Manifest
from scaling.files import Location
from scaling.model import ladder
from scaling.model.checkpoint import config_bytes, model_bytes
from scaling.results import Row
from scaling.study.declaration import Cell, Placement, Study, stable
from scaling.study.store import StudyFolder, TrialFolder
from scaling.sweep.code import PACKAGE
from scaling.sweep.limits import SETTLE_SECONDS, WORKER_FAILURES
from scaling.sweep.rows import trial_row
from scaling.training.device import Device
from scaling.training.events import final_events
from scaling.training.pruning import Hopeless
from scaling.training.task import Outcome, Task
from scaling.training.trainer import Job, run_in_process, run_under_ray_train


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Trial:
    """A learning rate tried in a cell, with everything a worker needs to run it and write its row.

    `nodes` are those assigned to its workers. `rival` is the cell's best trial so far, against which this one may be pruned.
    """

    study: Study
    folder: StudyFolder
    shards: Location
    cache_root: Path
    cell: Cell
    number: int
    lr: float
    access: Access
    fingerprint: str
    eval_pin: str
    code_commit: str
    nodes: tuple[str, ...] = ()
    rival: str = ""

    def __repr__(self) -> str:
        return f"Trial({self.key})"

    @property
    def key(self) -> str:
        """The trial's name in the store and on dashboards."""
        return self.cell.trial(self.number)

    @property
    def placement(self) -> Placement:
        """The resources it needs."""
        return self.study.placement(self.cell)

    @property
    def output(self) -> TrialFolder:
        """The trial's folder in the store."""
        return self.folder.trial(self.key)

    def about(self) -> dict[str, float | str]:
        """The parameters by which dashboards show the trial."""
        model, cell = self.study.model(self.cell.width), self.cell
        return {
            "num_params": ladder.count_parameters(model).reach_loss,
            "num_spectra": cell.num_spectra,
            "lr": self.lr,
            "seed": cell.seed,
            "precision": self.study.recipe.precision,
            "width": cell.width,
        }

    def write_row(self, row: Row) -> None:
        """Write a branch's row, or the trial's own with the metrics that TensorBoard compares."""
        if row.budget_share == 1.0:
            score = self.study.data.rules.score
            scores = (score, "mae_z") if score == "mae_dex" else (score,)
            columns = [f"test_{name}" for name in scores], ["wall_seconds", "mfu"], [f"val_{name}" for name in scores]
            final = {name: getattr(row, name) for group in columns for name in group}  # HPARAMS initially shows five
            well = row.status not in ("failed", "diverged")
            self.output.write_final_events(final_events(self.about(), final, f"val_{score}", ended_well=well))
        self.output.write_row(row)

    def task(self) -> Task:
        """The input of the training loop."""
        return Task(
            shards=self.shards,
            cache_root=self.cache_root,
            rules=self.study.data.rules,
            num_spectra=self.cell.num_spectra,
            model=self.study.model(self.cell.width),
            recipe=self.study.recipe,
            lr=self.lr,
            seed=self.cell.seed,
            access=self.access,
            whitening=self.study.ladder.whitening,
        )

    def run(self, forward: Callable[[dict[str, Any]], None]) -> Row:
        """Train on the host given by its placement, write the row and return it. A no-op if the trial has its row.

        Raises:
            OSError: The written row is not visible in the store.
        """
        if (row := self.output.read_row()) is not None:
            return row
        placement = self.placement
        job = Job(
            name=f"{self.study.name}-{self.key}",
            identity=self.fingerprint,
            setting=f"{self.lr!r}" + (" streamed" if self.access == "streamed" else ""),
            task=self.task(),
            folder=self.output,
            finish=functools.partial(_finish, self, time.time()),
            hopeless=self._hopeless(),
            workers=placement.workers,
            min_workers=placement.min_workers,
            cpus=placement.cpus,
            gpus=placement.gpus,
            micro_batch=placement.micro_batch,
            compiled=placement.compiled,
            deterministic=placement.deterministic,
            shown=self.about(),
        )
        if placement.host == "ray_train":
            storage, nodes = self.folder.ray_train_storage, None if placement.min_workers else self.nodes
            run_under_ray_train(job, storage, forward, max_failures=WORKER_FAILURES, nodes=nodes)
        else:
            run_in_process(job, forward)
        row = self.output.await_row(SETTLE_SECONDS)
        if row is None:
            raise FileNotFoundError(
                f"{self.folder.store.locate(self.output.path)}/row.json: not there after the trial wrote it"
            )
        return row

    def _hopeless(self) -> Hopeless | None:
        """The rule for pruning this trial, from the curve of its rival; None if there is no rival."""
        recipe, size = self.study.recipe, self.cell.num_spectra
        curve = self.folder.trial(self.rival).read_progress() if self.rival and recipe.schedule != "wsd" else None
        score = f"val_{self.study.data.rules.score}"
        if curve is None:
            return None
        return Hopeless.beside(self.rival, curve, score, recipe.budget.steps(size, recipe.batch_size))

    def fail(self, error: str) -> Row:
        """Write the row of a trial that could not be finished, unless it has one; returns its row."""
        row = trial_row(self, None, error=error, device=Device(name="", peak_flops=math.nan), wall_seconds=math.nan)
        self.write_row(row)
        return self.output.read_row() or row


def _finish(trial: Trial, started: float, outcome: Outcome, device: Device) -> None:
    if outcome.status == "done":
        standardisation = outcome.standardisation
        statistics = {
            "flux_offset": torch.from_numpy(standardisation.flux_offset),
            "flux_scale": torch.from_numpy(standardisation.flux_scale),
            "wave": torch.tensor(Manifest.load(trial.shards).wave, dtype=torch.float64),
        }
        rules = trial.study.data.rules
        about = {
            "trial": trial.key,
            "study": trial.study.name,
            "label": rules.label,
            "labels": list(rules.labels),
            "label_offset": standardisation.label_offset.tolist(),
            "label_scale": standardisation.label_scale.tolist(),
            "label_mean": standardisation.label_mean.tolist(),
            "label_std": standardisation.label_std.tolist(),
            "boundary": rules.boundary,
            "num_spectra": trial.cell.num_spectra,
            "precision": trial.study.recipe.precision,
            "lr": trial.lr,
            "rules": stable(rules),
        }
        model = trial.task().model
        content, config = model_bytes(model, outcome.weights, statistics, about), config_bytes(model, about)
        trial.output.write_model(content, config, outcome.share)
    row = trial_row(trial, outcome, error=outcome.error, device=device, wall_seconds=time.time() - started)
    trial.write_row(row)


def describe_exception(error: BaseException) -> str:
    """The last frame in our own code and the message, short enough for a row."""
    frames = [(Path(frame.filename).resolve(), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    own = [f"{path.name}:{line}" for path, line in frames if path.is_relative_to(PACKAGE)]
    where = f" at {own[-1]}" if own else ""
    return f"{type(error).__name__}{where}: {error}"[:2000]
