"""The device a worker trains on, and its matrix-product throughput."""

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
"""Bytes of GPU memory that CUDA itself takes per process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A worker's device. `peak_flops` is the rate (FLOP/s) of large matrix products in the training precision.

    It refers to the whole device; on a CPU, to the trial's threads. A trial on a fraction of a GPU is also compared with
    the whole GPU: where two share one, each reaches at most about half of it.
    """

    name: str
    peak_flops: float


def cuda_device() -> torch.device:
    """The GPU of this process.

    Raises:
        NodeError: PyTorch cannot use it: CUDA is missing, the driver is too old, or there is no device.
    """
    try:
        torch.cuda.init()
    except (AssertionError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise NodeError(f"torch {torch.__version__} cannot use the GPU: {reason}") from error
    return torch.device("cuda", 0)


def take_share(device: torch.device, share: float) -> None:
    """Limit this process's share of a GPU's memory, so that a trial that needs more fails and the others do not."""
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(max(0.0, share - CONTEXT / total) if share < 1 else 1.0, device)


def be_deterministic(wanted: bool) -> None:
    """Enable or disable deterministic kernels in this process.

    With the same version of PyTorch on the same kind of GPU, the same trial is then bit-identical. Operations without a
    deterministic kernel raise a RuntimeError.
    """
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by PyTorch
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing here reads uninitialised memory
    torch.use_deterministic_algorithms(wanted)


def measure(device: torch.device, precision: Precision, cache_root: Path | None = None) -> Device:
    """Name a device and measure its peak, once per process, precision and number of threads (CPU: 0.1 to 0.2 s).

    The result is lower while other processes use the device. For a GPU, the maximum measured on this node is therefore
    stored in the cache folder, if one is given.
    """
    peak = _peak_flops(device, precision, torch.get_num_threads())
    if device.type != "cuda":
        return Device(name="cpu", peak_flops=peak)
    name = torch.cuda.get_device_name(device)
    if cache_root is not None:
        peak = _most_seen(cache_root, f"{name}, {precision}, torch {torch.__version__}", peak)
    return Device(name=name, peak_flops=peak)


def _most_seen(cache_root: Path, what: str, peak: float) -> float:
    """The larger of a new and the stored peak, which is then stored. A folder that cannot be used is ignored."""
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
    """The best rate over some square products; `threads` is only a cache key."""
    size = 8192 if device.type == "cuda" else 256 if precision == "fp16" else 1024  # most CPUs lack fp16: 2 GFLOP/s
    dtype, generator = AUTOCAST[precision] or torch.float32, torch.Generator(device).manual_seed(0)
    # Random values: a GPU multiplies constant ones faster, because it draws less power.
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
