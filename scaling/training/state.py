"""Resumable state of a trial, and a check that a saved one fits the trial."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

State = dict[str, Any]
SPENT = ("train_seconds", "shared_seconds", "eval_seconds")


@dataclass(slots=True)
class Progress:
    """Training progress: the state other than model and optimiser. `run` counts the finished budgets."""

    run: int = 0
    step: int = 0
    best_error: float = math.inf
    best_step: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    shared_seconds: float = 0.0
    fork: State = field(default_factory=dict)


def fits(saved: State, fresh: State, parameters: Sequence[Tensor], totals: Sequence[int]) -> bool:
    """Whether a saved state has the structure and tensor shapes of a fresh one.

    Args:
        saved: The saved state: `progress`, and the result of `Stepper.state`.
        fresh: The trial's own state before its first step.
        parameters: The parameters that its optimiser updates.
        totals: The number of steps of each of its runs.
    """
    try:
        progress = saved["progress"]
        weights, fork, step, run = (progress[name] for name in ("best_weights", "fork", "step", "run"))
        return (
            _alike(progress | {"best_weights": {}, "fork": {}}, fresh["progress"])
            and run >= 0
            and 0 < step <= totals[run]
            and (_alike(weights, fresh["model"]) if weights else step < totals[run])
            and (not fork or _alike([fork["step"], fork["spent"]], [0, dict.fromkeys(SPENT, 0.0)]))
            and all(_training_fits(part, fresh, parameters) for part in (saved, fork) if part)
        )
    except (KeyError, IndexError, TypeError, AttributeError):  # different structure
        return False


def _training_fits(saved: State, fresh: State, parameters: Sequence[Tensor]) -> bool:
    moments, groups = saved["optimizer"]["state"], saved["optimizer"]["param_groups"]
    return (
        _alike(saved["model"], fresh["model"])
        and _alike(saved["scaler"], fresh["scaler"])
        and [group["params"] for group in groups] == [list(range(len(parameters)))]
        and all(
            _alike(found[name], parameters[index]) and found["step"].numel() == 1
            for index, found in moments.items()
            for name in ("exp_avg", "exp_avg_sq")
        )
    )


def _alike(found: Any, expected: Any) -> bool:
    if isinstance(expected, Tensor):
        return isinstance(found, Tensor) and (found.shape, found.dtype) == (expected.shape, expected.dtype)
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(_alike(found[name], expected[name]) for name in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(_alike, found, expected))
    return type(found) is type(expected)
