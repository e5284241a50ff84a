"""Where batches go: one worker of a trial, its device and its node's cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """One of the ``world`` workers of a trial.

    Attributes:
        cache_root: The node's cache of memory maps.
        device: Where batches go.
        rank: This worker's number.
        world: The number of workers.
        device_share: The part of the device's memory that the trial may take.
    """

    cache_root: Path
    device: torch.device
    rank: int = 0
    world: int = 1
    device_share: float = 1.0
