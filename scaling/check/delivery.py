"""Data delivery: throughput of batches to the device for each kind of access, and GPU memory used by a step."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import torch

from scaling.check.bench import Bench
from scaling.check.findings import Finding, within
from scaling.data.batches import DataRules, TrainingBatches, Worker, training_batches
from scaling.data.batches.training import Access
from scaling.data.shards.convert import convert
from scaling.data.shards.manifest import MANIFEST, Manifest
from scaling.data.simulated.writer import Simulation, write_simulation
from scaling.files import Location
from scaling.folder import Folder
from scaling.study.declaration import Placement, Sources
from scaling.sweep.costs import Speed
from scaling.sweep.timing import POOL, time_rung, wait_for
from scaling.training.memory import MARGIN, step_bytes

SPECTRA, PER_SHARD = 2048, 256
"""Size of the test set: as many shards as a stream has lanes."""


def delivery(bench: Bench, speeds: list[Speed], seconds: float) -> Finding:
    """Throughput (spectra/s) of resident, mapped and streamed batches, compared with that of training.

    Uses the first of the study's own shards if they exist, otherwise simulated ones on this node's disk. Both are in
    the page cache.
    """
    rates = dict[str, float]()
    with _spectra(bench) as (shards, rules, scratch):
        worker = Worker(cache_root=scratch, device=bench.device)
        rows = min(SPECTRA, Manifest.load(shards).num_rows("train"))
        size = min(bench.study.recipe.batch_size, rows)
        for access in get_args(Access)[1:]:
            batches = training_batches(shards, rules, rows, size, seed=0, worker=worker, access=access)
            with contextlib.closing(batches):
                rates[access] = _rate(batches, seconds)
    found = ", ".join(f"{access} {rate:,.0f}" for access, rate in rates.items())
    fastest = max(speeds, key=lambda speed: speed.rows / speed.step_seconds)
    takes = f"training takes up to {fastest.rows / fastest.step_seconds:,.0f}, w{fastest.width} in {fastest.precision}"
    return Finding(check="batches", verdict="ok", found=f"samples/s: {found}; {takes}")


def _rate(batches: TrainingBatches, seconds: float) -> float:
    """Spectra per second, measured for some seconds and at least one epoch after the first batch."""
    device, taken = batches.worker.device, 0
    batches.batch(0)
    wait_for(device)
    started = time.perf_counter()
    for step in itertools.count(1):
        taken += batches.batch(step)[0].shape[0]
        if step >= batches.steps_per_epoch and time.perf_counter() >= started + seconds:
            break
    wait_for(device)
    return taken / (time.perf_counter() - started)


@contextlib.contextmanager
def _spectra(bench: Bench) -> Iterator[tuple[Location, DataRules, Path]]:
    """A shard set with its rules, and a temporary folder for memory maps."""
    source, rules = bench.study.data.source, bench.study.data.rules
    with tempfile.TemporaryDirectory(prefix="spectral-scaling-check-") as name:
        folder = Path(name)
        if isinstance(source, Sources) and Folder.at(source.shards).size(MANIFEST) is not None:
            yield source.shards, rules, folder / "cache"
            return
        few = PER_SHARD // 4
        files = write_simulation(
            folder / "hdf5", Simulation(train=SPECTRA, val=few, test=few, pixels=bench.study.ladder.num_pixels)
        )
        train, val, test = files["train"], files["val"], files["test"]
        convert(folder / "shards", train=train, val=val, test=test, rows_per_shard=PER_SHARD, on_ray=False)
        yield folder / "shards", DataRules(noise=rules.noise), folder / "cache"


def memory(bench: Bench, place: Placement) -> Finding | None:
    """GPU memory used by each rung's step, compared with the estimate used for planning and for placing spectra."""
    if bench.device.type == "cpu":
        return None
    study, parts = bench.study, dict[str, float]()
    rows = min(place.micro_batch or study.recipe.batch_size, study.recipe.batch_size)
    arrays = 1 if study.data.rules.noise == "fixed" else 2
    pool = 4 * POOL * arrays * study.ladder.num_pixels
    for width in bench.widths:
        before = torch.cuda.memory_allocated(bench.device)
        torch.cuda.reset_peak_memory_stats(bench.device)
        time_rung(study, width, place, bench.device, 0.0)
        taken = torch.cuda.max_memory_allocated(bench.device) - before - pool
        parts[f"w{width}"] = taken / step_bytes(study.model(width), study.recipe.precision, rows, gpu=True).step
    what, remedy = "a step's memory ÷ what is counted", "set Data.access='mapped' where memory is scarce"
    return within("memory", parts, dict.fromkeys(parts, MARGIN), what, remedy)
