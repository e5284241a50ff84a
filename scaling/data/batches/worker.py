"""The destination of batches: one worker of a trial, with its device and its node's cache."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """One of the ``world`` workers of a trial.

    Attributes:
        cache_root: The node's cache of memory maps.
        device: The device that batches are copied to.
        rank: This worker's number.
        world: The number of workers.
        device_share: The fraction of the device's memory that the trial may use.
        reserved: Bytes of that share reserved for the model.
    """

    cache_root: Path
    device: torch.device
    rank: int = 0
    world: int = 1
    device_share: float = 1.0
    reserved: int = 0

    def room(self) -> float:
        """Bytes that spectra may still use of the trial's GPU, which may be shared with others; unlimited on a CPU."""
        if self.device.type != "cuda":
            return math.inf
        free, total = torch.cuda.mem_get_info(self.device)
        mine = self.device_share * total - torch.cuda.memory_allocated(self.device)
        return float(min(free, mine) - self.reserved)
