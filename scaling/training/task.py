"""Interface of the training loop: its task, its context and its outcome."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from scaling.data.batches import Access, DataRules, Standardisation
from scaling.files import Location
from scaling.model.ladder import Whitening
from scaling.model.specvit import ModelConfig
from scaling.training.metrics import Classified, Detail, Scores
from scaling.training.pruning import Hopeless
from scaling.training.recipe import Compiled, Recipe
from scaling.training.state import State

Status = Literal["done", "diverged", "pruned"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Everything that determines one trial's result.

    `access` affects the result only if "streamed", which has another order. `whitening` is for a model with such a map.
    """

    shards: Location
    cache_root: Path
    rules: DataRules
    num_spectra: int
    model: ModelConfig
    recipe: Recipe
    lr: float
    seed: int
    access: Access = "auto"
    whitening: Whitening | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The host as seen by the loop.

    `device_share` is the fraction of the device that this trial may use, beside others. `micro_batch` and
    `compiled` are those of `Stepper`. `report` receives the metrics of an evaluation and the state to resume from, on every
    worker; the host stores rank 0's. `load` returns the last state, or None; `refuse` is called if it cannot be resumed.
    `branch` receives the outcome of a shorter budget, on every worker; a resumed trial may report the same one again.
    `hopeless` may end the trial early.
    """

    rank: int
    world: int
    device: torch.device
    report: Callable[[dict[str, float], State], None]
    load: Callable[[], State | None]
    refuse: Callable[[], None] = lambda: None
    branch: Callable[[Outcome], None] = lambda outcome: None
    device_share: float = 1.0
    micro_batch: int | None = None
    compiled: Compiled = False
    hopeless: Hopeless | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Result of a finished run, with scores in the labels' units.

    `others` has the validation and test scores of the other labels, in their order. `share` is the run's fraction of the
    trial's budget. `train_seconds` is the time of a run of this budget, including `eval_seconds` for scoring the
    validation split; `added_seconds` excludes the part shared with a shorter run.
    """

    status: Status
    share: float
    error: str
    val: Scores | Classified | None
    test: Scores | Classified | None
    others: list[tuple[Scores, Scores]]
    test_detail: Detail | None
    best_epoch: float
    steps: int
    samples_seen: int
    skipped_steps: int
    train_seconds: float
    eval_seconds: float
    added_seconds: float
    access: str
    weights: dict[str, Tensor]
    standardisation: Standardisation
