"""Throughput of batches relative to its limits: ratios of rates measured alternately in one run, on simulated spectra.

    python -m benchmarks.batches [--rows 8192] [--rounds 5] [--json OUT]

mapped, resident   samples/s of the batches ÷ the same arithmetic on an in-memory tensor indexed by the same rows
streamed           samples/s of training on streamed batches ÷ on resident ones, which only the model limits
                   (the demo's largest model and batch, one trial with one thread in a Ray worker, shards decoded by another)
mapped ÷ h5py      samples/s of mapped batches ÷ rows read at random by h5py from float64 chunks of 4096 spectra through a
                   torch DataLoader, as the original study does; flux, error and fresh noise; one process each; also with
                   fixed noise, where the map holds only the noisy flux. Cold: no page of the files in memory (posix_fadvise),
                   and so few rows are read from each that most come from the disk
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from benchmarks.small_demo import STUDY
from scaling.data.batches import DataRules, Worker, training_batches
from scaling.data.hdf5.reader import open_spectra
from scaling.data.shards.convert import convert
from scaling.data.simulated.writer import Simulation, write_simulation
from scaling.sweep.cluster import ray_cluster
from scaling.training.loop import train
from scaling.training.recipe import Budget
from scaling.training.task import Context, Task

CPU = torch.device("cpu")
BATCH = 256
REAL_CHUNK_ROWS = 4096
TARGETS = {
    "mapped ÷ tensor": 0.95,
    "resident ÷ tensor": 0.95,
    "streamed ÷ resident, training": 0.9,
    "mapped, fixed noise ÷ h5py, cold": 10.0,
    "mapped, fresh noise ÷ h5py, cold": 10.0,
}


class Workplace:
    """Simulated spectra of 4096 pixels in a temporary folder, their shards, and a node cache."""

    def __init__(self, folder: Path, rows: int) -> None:
        self.folder, self.rows, self.cache = folder, rows, folder / "cache"
        self.shards, self.files = self.make("wide", Simulation(train=rows, val=64, test=64))

    def make(self, name: str, simulation: Simulation) -> tuple[Path, dict[str, list[Path]]]:
        """Simulate and convert a set."""
        files = write_simulation(self.folder / name / "hdf5", simulation)
        convert(self.folder / name / "shards", **files, order="source")
        return self.folder / name / "shards", files

    def batches(self, access: str, noise: str) -> Any:
        """Batches of all training spectra."""
        rules = DataRules(noise=noise)
        worker = Worker(cache_root=self.cache, device=CPU)
        return training_batches(self.shards, rules, self.rows, BATCH, seed=0, worker=worker, access=access)


def rate(step: Callable[[int], Any], steps: int) -> float:
    """Samples per second of full batches."""
    started = time.perf_counter()
    for number in range(steps):
        step(number)
    return steps * BATCH / (time.perf_counter() - started)


def gathering(place: Workplace, rounds: int) -> dict[str, list[float]]:
    """Mapped and resident batches against an in-memory tensor, measured alternately."""
    mapped, resident = place.batches("mapped", "fixed"), place.batches("resident", "fixed")
    flux, labels = mapped._spectra[:, 0].clone(), mapped._labels
    offset, scale = (
        torch.from_numpy(a) for a in (mapped._standardisation.flux_offset, mapped._standardisation.flux_scale)
    )

    def index(step: int) -> Any:
        rows = torch.from_numpy(mapped.rows(step))
        return (flux.index_select(0, rows) - offset) / scale, labels[rows]

    steps, found = place.rows // BATCH, {"tensor": [], "mapped": [], "resident": []}
    for _ in range(10 * rounds + 1):  # each takes a tenth of a second
        found["tensor"].append(rate(index, steps))
        found["mapped"].append(rate(mapped.batch, steps))
        found["resident"].append(rate(resident.batch, steps))
    mapped.close()
    return {name: values[1:] for name, values in found.items()}


class RandomRows(torch.utils.data.Dataset):
    """The original study's method: one row of flux and error from HDF5, with fresh noise."""

    def __init__(self, path: Path) -> None:
        self.file = h5py.File(path)
        self.flux, self.error = self.file["flux"], self.file["error"]

    def __len__(self) -> int:
        return len(self.flux)

    def __getitem__(self, row: int) -> torch.Tensor:
        flux, error = (torch.from_numpy(array[row].astype(np.float32)) for array in (self.flux, self.error))
        return flux.clamp(min=0) + torch.randn_like(flux) * error


def cold_reading(place: Workplace, rounds: int) -> dict[str, list[float]]:
    """Mapped batches against random h5py rows, with and without their files in the page cache."""
    path = place.folder / "real-chunks.h5"
    with open_spectra(place.files["train"][0]) as spectra, h5py.File(path, "w") as file:
        shape, chunks = (place.rows, spectra.num_pixels), (min(REAL_CHUNK_ROWS, place.rows), spectra.num_pixels)
        arrays = [file.create_dataset(name, shape, "f8", chunks=chunks) for name in ("flux", "error")]
        for start in range(0, place.rows, 512):
            for array, values in zip(arrays, spectra.read(start, min(start + 512, place.rows)), strict=True):
                array[start : start + 512] = values
    for noise in ("fixed", "fresh"):
        place.batches("mapped", noise).close()
    cold_steps = max(1, place.rows // (4 * BATCH))
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        for state, steps in (("cold", cold_steps), ("warm", place.rows // BATCH)):
            forget(place.folder, state)
            for noise in ("fixed", "fresh"):
                mapped = place.batches("mapped", noise)
                mapped.batch(0)  # if it waits for the disk, the following batches are read ahead
                step = functools.partial(lambda batches, number: batches.batch(number + 1), mapped)
                found.setdefault(f"mapped, {noise} noise, {state}", []).append(rate(step, steps - 1))
                mapped.close()
                del mapped, step  # mapped pages cannot be dropped
            rows = RandomRows(path)
            loader = iter(torch.utils.data.DataLoader(rows, batch_size=BATCH, shuffle=True))
            next(loader)
            read = functools.partial(lambda batches, number: next(batches), loader)
            found.setdefault(f"h5py, {state}", []).append(rate(read, min(steps, 8) - 1))
            rows.file.close()
    return found


def forget(folder: Path, state: str) -> None:
    """Drop the pages of a folder's files from memory, or read them all."""
    os.sync()
    for path in (*folder.rglob("*.f32"), *folder.rglob("real-chunks.h5")):
        with open(path, "rb") as file:
            if state == "cold":
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            else:
                while file.read(2**24):
                    pass


def training(place: Workplace, rounds: int) -> dict[str, list[float]]:
    """The demo's largest model on streamed and on resident batches, alternately: after the first tenth, and overall."""
    import ray

    simulation = dataclasses.replace(STUDY.data.source, val=64, test=64)
    shards, _ = place.make("demo", simulation)
    recipe = dataclasses.replace(STUDY.recipe, budget=Budget(samples=6 * simulation.train), evaluations=10)
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        for access in ("resident", "streamed"):
            task = Task(
                shards=shards,
                cache_root=place.cache,
                rules=STUDY.data.rules,
                num_spectra=simulation.train,
                model=STUDY.ladder.rung(STUDY.widths[-1]),
                recipe=recipe,
                lr=1e-3,
                seed=0,
                access=access,
            )
            reports = ray.get(ray.remote(num_cpus=1)(reports_of).remote(task))  # in a worker, as trials are
            first, last = reports[0], reports[-1]
            seconds = last["train_seconds"] - first["train_seconds"]
            samples = (last["step"] - first["step"]) * recipe.batch_size
            found.setdefault(f"{access}, training", []).append(samples / seconds)
            whole = last["step"] * recipe.batch_size / last["train_seconds"]
            found.setdefault(f"{access}, training with its start", []).append(whole)
    return found


def reports_of(task: Task) -> list[dict[str, float]]:
    """Train with one thread and return the reports."""
    torch.set_num_threads(1)
    reports: list[dict[str, float]] = []
    train(task, Context(rank=0, world=1, device=CPU, report=lambda now, _: reports.append(now), load=lambda: None))
    return reports


def main() -> None:
    """Measure, print a table, and write JSON if requested."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8192, help="training spectra of 4096 pixels")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions, of which the median counts")
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with (
        tempfile.TemporaryDirectory(prefix="batches-") as folder,
        ray_cluster(None),
        contextlib.suppress(BrokenPipeError),
    ):
        place = Workplace(Path(folder), options.rows)
        rates = gathering(place, options.rounds) | cold_reading(place, min(3, options.rounds))
        rates |= training(place, options.rounds)
    middle = {name: statistics.median(values) for name, values in rates.items()}
    for name, value in middle.items():
        spread = f"{min(rates[name]):,.0f} to {max(rates[name]):,.0f}"
        print(f"{name:36} {value:12,.0f} samples/s   ({spread})")

    def ratio(a: str, b: str) -> float:
        """Median over rounds of the ratio of two rates, measured directly after each other."""
        return statistics.median(x / y for x, y in zip(rates[a], rates[b], strict=True))

    ratios = {
        "mapped ÷ tensor": ratio("mapped", "tensor"),
        "resident ÷ tensor": ratio("resident", "tensor"),
        "streamed ÷ resident, training": ratio("streamed, training", "resident, training"),
    }
    for state in ("cold", "warm"):
        for noise in ("fixed", "fresh"):
            ratios[f"mapped, {noise} noise ÷ h5py, {state}"] = ratio(
                f"mapped, {noise} noise, {state}", f"h5py, {state}"
            )
    print()
    for name, ratio in ratios.items():
        target = f"target {TARGETS[name]:g}" if name in TARGETS else ""
        print(f"{name:36} {ratio:12.2f}   {target}")
    if options.json:
        options.json.write_text(
            json.dumps({"samples_per_second": rates, "ratios": ratios, "targets": TARGETS}, indent=1)
        )


if __name__ == "__main__":
    main()
