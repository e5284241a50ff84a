"""The device a worker trains on, and how fast it multiplies matrices."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from scaling.errors import NodeError
from scaling.files import json_bytes, published
from scaling.training.evaluate import AUTOCAST, autocast
from scaling.training.recipe import Precision

PEAK_REPEATS = 5
PEAKS = "peaks.json"
CONTEXT = 500_000_000
"""Bytes of a GPU that each process takes for CUDA itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A worker's device. `peak_flops` is the rate (FLOP/s) of large matrix products in the precision of training.

    It is the whole device's, with the trial's threads on a CPU. A trial on a fraction of a GPU is compared with the
    whole GPU too: where two share one, each can reach about half of it.
    """

    name: str
    peak_flops: float


def cuda_device() -> torch.device:
    """The GPU of this process.

    Raises:
        NodeError: PyTorch cannot use it, for want of CUDA, of a driver that is new enough, or of the device.
    """
    try:
        torch.cuda.init()
    except (AssertionError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise NodeError(f"torch {torch.__version__} cannot use the GPU: {reason}") from error
    return torch.device("cuda", 0)


def take_share(device: torch.device, share: float) -> None:
    """Bound what this process takes of a GPU that others use too: a trial that needs more fails, and its neighbours do not."""
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(max(0.0, share - CONTEXT / total) if share < 1 else 1.0, device)


def be_deterministic(wanted: bool) -> None:
    """Whether kernels whose order of additions varies are replaced, in this process from now on.

    Of the same version of PyTorch on the same kind of GPU the same trial then gives the same bits. What has no such kernel
    raises a RuntimeError.
    """
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # PyTorch asks for it
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing here reads what it did not write
    torch.use_deterministic_algorithms(wanted)


def measure(device: torch.device, precision: Precision, cache_root: Path | None = None) -> Device:
    """Name a device and measure its peak, once a process, precision and number of threads; on a CPU in 0.1 to 0.2 s.

    It is what the device gives at this moment: less while other processes use it. Of a GPU the most that was measured on this
    node is therefore kept in the cache's folder, where one is given.
    """
    peak = _peak_flops(device, precision, torch.get_num_threads())
    if device.type != "cuda":
        return Device(name="cpu", peak_flops=peak)
    name = torch.cuda.get_device_name(device)
    if cache_root is not None:
        peak = _most_seen(cache_root, f"{name}, {precision}, torch {torch.__version__}", peak)
    return Device(name=name, peak_flops=peak)


def _most_seen(cache_root: Path, what: str, peak: float) -> float:
    """The larger of a peak and the one that is kept; it is kept from now on. A folder that cannot be used keeps nothing."""
    file, kept = cache_root / PEAKS, dict[str, float]()
    with contextlib.suppress(OSError, ValueError, TypeError):
        kept = {name: float(value) for name, value in dict(json.loads(file.read_bytes())).items()}
    seen = kept.get(what, 0.0)
    if peak > seen:
        with contextlib.suppress(OSError), published(file) as temporary:
            temporary.write_bytes(json_bytes(kept | {what: peak}))
    return max(peak, seen)


@functools.cache
def _peak_flops(device: torch.device, precision: Precision, threads: int) -> float:
    """The best of some square products; `threads` tells apart what is remembered."""
    size = 8192 if device.type == "cuda" else 256 if precision == "fp16" else 1024  # most CPUs have no fp16: 2 GFLOP/s
    dtype, generator = AUTOCAST[precision] or torch.float32, torch.Generator(device).manual_seed(0)
    # Random values: a GPU multiplies equal ones faster, because it draws less power.
    left, right = (torch.randn(size, size, generator=generator, device=device).to(dtype) for _ in range(2))
    autocast(device, precision)
    shortest = float("inf")
    for _ in range(PEAK_REPEATS):
        started = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        shortest = min(shortest, time.perf_counter() - started)
    return 2 * size**3 / shortest
