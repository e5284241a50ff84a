"""What the hosts cost: steps/s of trials under Ray Train ÷ those of bare loops on tensors in memory, measured in one run.

    python -m benchmarks.hosts [--rounds 3] [--width W] [--json OUT]

The same model, precision, batch rows and one thread each; the bare loop indexes standardised spectra in memory, and knows no
schedule, metrics, evaluation or checkpoint. With two workers (gloo) each trains on half of the rows, and is compared with a bare loop on
as many, two of them side by side. Trials are evaluated and checkpointed four times; the median of the three times between counts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from scaling.data.batches import training_batches
from scaling.data.dataset import DataRules
from scaling.data.shards import convert
from scaling.data.simulate import Simulation, write_simulation
from scaling.model.ladder import Ladder
from scaling.model.specvit import ModelConfig, SpecViT
from scaling.study.cluster import ray_cluster
from scaling.training.device import Device
from scaling.training.evaluate import autocast
from scaling.training.loop import Outcome, Task
from scaling.training.recipe import Budget, Recipe
from scaling.training.trainer import Job, run_in_process, run_under_ray_train

CPU = torch.device("cpu")
ROWS, EVALUATIONS = 1024, 4
TARGETS = {"own process": 0.97, "Ray Train, 1 worker": 0.97, "Ray Train, 2 workers": 0.9}


@dataclass(frozen=True)
class Case:
    """A model and how it is trained."""

    name: str
    ladder: Ladder
    width: int
    recipe: Recipe


def recipe(steps: int, batch: int, precision: str) -> Recipe:
    """So many steps."""
    budget = Budget(samples=steps * batch)
    return Recipe(budget=budget, batch_size=batch, precision=precision, evaluations=EVALUATIONS, schedule_unit="step")


CASES = (
    Case(
        "w32, 9 tokens",
        Ladder(num_pixels=1024, patch_size=128, dropout=0.0, attention_dropout=0.0),
        32,
        recipe(4000, 64, "fp32"),
    ),
    Case(
        "w128, 65 tokens", Ladder(num_pixels=1024, patch_size=16, attention_dropout=0.0), 128, recipe(320, 64, "bf16")
    ),
)


@dataclass(frozen=True)
class CurveFolder:
    """Keeps a trial's curve and state as a store does."""

    path: Path

    def write_progress(self, csv: str, events: bytes) -> None:
        """The curve."""
        (self.path / "progress.csv").write_text(csv)

    def write_state(self, content: bytes) -> None:
        """The state."""
        (self.path / "state.pt").write_bytes(content)

    def read_state(self) -> bytes | None:
        """None: every run is a new one."""
        return None

    def finish(self, outcome: Outcome, device: Device) -> None:
        """Nothing."""

    def steps_per_second(self) -> float:
        """The median over the times between evaluations."""
        curve = pd.read_csv(self.path / "progress.csv")
        return float((curve["step"].diff() / curve["train_seconds"].diff()).median())


def bare_loop(config: ModelConfig, recipe: Recipe, flux: Tensor, labels: Tensor, rows: int) -> float:
    """Steps/s of a plain loop, the median over three parts."""
    torch.set_num_threads(1)
    model = SpecViT(config)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)
    steps, rates = recipe.budget.steps(len(labels), recipe.batch_size) // EVALUATIONS, []
    for _ in range(EVALUATIONS):
        started = time.perf_counter()
        for _ in range(steps):
            chosen = torch.randint(len(labels), (rows,))
            with autocast(CPU, recipe.precision):
                predicted = model(flux[chosen])
            loss = (predicted.float() - labels[chosen]).abs().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, recipe.clip_norm, foreach=True)
            optimizer.step()
        rates.append(steps / (time.perf_counter() - started))
    return statistics.median(rates[1:])


def _bare_process(rank: int, results: torch.multiprocessing.SimpleQueue, *arguments: object) -> None:
    results.put(bare_loop(*arguments))  # type: ignore[arg-type]


def side_by_side(*arguments: object) -> float:
    """Steps/s of two bare loops at the same time, each in a process of its own."""
    results = torch.multiprocessing.get_context("spawn").SimpleQueue()
    torch.multiprocessing.spawn(_bare_process, (results, *arguments), nprocs=2)
    return (results.get() + results.get()) / 2


def measure(case: Case, shards: Path, folder: Path, names: itertools.count) -> dict[str, float]:
    """Steps/s of every way to run a case, once."""
    config, batch = case.ladder.rung(case.width), case.recipe.batch_size
    rules = DataRules(noise="fixed")
    batches = training_batches(shards, rules, ROWS, ROWS, seed=0, device=CPU, cache_root=folder / "cache")
    flux, labels = batches.batch(0)

    def trial(host: str, workers: int = 1) -> float:
        output = CurveFolder(folder / f"{next(names)}")
        output.path.mkdir()
        task = Task(
            shards=shards,
            cache_root=folder / "cache",
            rules=rules,
            num_spectra=ROWS,
            model=config,
            recipe=case.recipe,
            lr=1e-3,
            seed=0,
        )
        job = Job(name=output.path.name, identity="", task=task, folder=output, finish=output.finish, workers=workers)
        if host == "process":
            run_in_process(job, lambda metrics: None)
        else:
            run_under_ray_train(job, str(folder / "ray-train"))
        return output.steps_per_second()

    return {
        "bare": bare_loop(config, case.recipe, flux, labels, batch),
        "own process": trial("process"),
        "Ray Train, 1 worker": trial("ray train"),
        "two bare, half the rows each": side_by_side(config, case.recipe, flux, labels, batch // 2),
        "Ray Train, 2 workers": trial("ray train", workers=2),
    }


def main() -> None:
    """Measure, print a table, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="repetitions, of which the median counts")
    parser.add_argument("--width", type=int, help="of the one model to measure")
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    names, found = itertools.count(), {}
    with tempfile.TemporaryDirectory(prefix="hosts-") as root, ray_cluster(None):
        folder = Path(root)
        files = write_simulation(folder / "hdf5", Simulation(train=ROWS, val=64, test=64, pixels=1024))
        convert(folder / "shards", **files, order="source")
        for case in [case for case in CASES if options.width in (None, case.width)]:
            rounds = [measure(case, folder / "shards", folder, names) for _ in range(options.rounds)]
            for name, target in TARGETS.items():
                bare = "two bare, half the rows each" if name.endswith("workers") else "bare"
                rates = [each[name] for each in rounds]
                ratios = [each[name] / each[bare] for each in rounds]
                found[f"{case.name}: {name}"] = {"steps_per_second": rates, "ratios": ratios}
                spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
                print(
                    f"{case.name:16} {name:22} {statistics.median(rates):8.1f} steps/s, "
                    f"{statistics.median(ratios):5.2f} of the bare loop ({spread})   target {target:g}",
                    flush=True,
                )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
