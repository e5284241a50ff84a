"""Cost of our step under Ray Train relative to a bare loop: ratios of rates measured alternately in the same workers.

    python -m benchmarks.hosts [--rounds 10] [--json OUT]

In each worker of a TorchTrainer, some of our steps (batches from the node's map, schedule, precision, clipping, loss sums; with two
workers also the gradient all-reduce by gloo) alternate with some of a bare loop (standardised spectra in memory, indexed; the same model,
optimiser and clipping; as many rows, no other worker), with one thread each. The result is the median over the turns. Evaluations and
checkpoints are excluded: their cost depends on `Recipe.evaluations`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scaling.data.batches import DataRules, Worker, training_batches
from scaling.data.shards.convert import convert
from scaling.data.simulated.writer import Simulation, write_simulation
from scaling.model.ladder import Ladder
from scaling.model.specvit import ModelConfig, SpecViT
from scaling.sweep.cluster import ray_cluster
from scaling.training.evaluate import autocast
from scaling.training.recipe import Budget, Precision, Recipe
from scaling.training.step import Stepper

CPU = torch.device("cpu")
ROWS = 1024
TARGETS = {1: 0.97, 2: 0.9}


@dataclass(frozen=True)
class Case:
    """A model, its training settings, and the number of our steps per turn."""

    name: str
    config: ModelConfig
    precision: Precision
    batch: int
    steps: int

    @property
    def recipe(self) -> Recipe:
        """The recipe with these settings."""
        return Recipe(budget=Budget(epochs=1000), batch_size=self.batch, precision=self.precision)


SMALL = Ladder(num_pixels=1024, patch_size=128, dropout=0.0, attention_dropout=0.0).rung(32)
MIDDLE = Ladder(num_pixels=1024, patch_size=16, attention_dropout=0.0).rung(128)
CASES = (Case("w32, 9 tokens", SMALL, "fp32", 64, 300), Case("w128, 65 tokens", MIDDLE, "bf16", 64, 12))


def bare_step(case: Case, flux: Tensor, labels: Tensor, rows: int) -> Callable[[], None]:
    """A plain step."""
    model = SpecViT(case.config)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)

    def step() -> None:
        chosen = torch.randint(len(labels), (rows,))
        with autocast(CPU, case.precision):
            predicted = model(flux[chosen])
        loss = (predicted.float() - labels[chosen]).abs().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 0.5, foreach=True)
        optimizer.step()

    return step


def our_step(case: Case, folder: Path, rank: int, world: int) -> Callable[[], None]:
    """A step of a trial, in one of `world` workers."""
    workers: dict[str, Any] = {"rank": rank, "world": world}
    batches = training_batches(
        folder / "shards",
        DataRules(noise="fixed"),
        ROWS,
        case.batch,
        seed=0,
        worker=Worker(cache_root=folder / "cache", device=CPU, **workers),
    )
    stepper = Stepper(case.config, case.recipe, batches, lr=1e-3, seed=0)
    (run,), done = case.recipe.runs(ROWS), iter(range(10**9))
    return lambda: stepper.step(next(done), run)


def turns(config: dict[str, Any]) -> None:
    """Code of a worker: writes the steps/s of both loops, turn by turn."""
    from ray import train

    case, folder, context = config["case"], Path(config["folder"]), train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(1)
    worker = Worker(cache_root=folder / "cache", device=CPU)
    whole = training_batches(folder / "shards", DataRules(noise="fixed"), ROWS, ROWS, seed=0, worker=worker)
    flux, labels = whole.batch(0)
    ways = {
        "ours": our_step(case, folder, rank, world),
        "bare": bare_step(case, flux, labels, case.batch // world),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(config["rounds"] + 1):
        for name, step in ways.items():
            if world > 1:
                torch.distributed.barrier()
            started = time.perf_counter()
            for _ in range(case.steps):
                step()
            found[name].append(case.steps / (time.perf_counter() - started))
    (folder / f"{config['name']}-{rank}.json").write_text(json.dumps({n: rates[1:] for n, rates in found.items()}))


def measure(case: Case, folder: Path, workers: int, rounds: int) -> dict[str, list[float]]:
    """Steps/s of both loops, on rank 0, under Ray Train."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    name = f"w{case.config.width}-{workers}"
    TorchTrainer(
        turns,
        train_loop_config={"case": case, "folder": str(folder), "rounds": rounds, "name": name},
        scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(name=name, storage_path=str(folder / "ray-train")),
    ).fit()
    return dict(json.loads((folder / f"{name}-0.json").read_text()))


def main() -> None:
    """Measure, print a table, and write JSON if requested."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="turns, of which the median counts")
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory(prefix="hosts-") as root, ray_cluster(None):
        folder = Path(root)
        files = write_simulation(folder / "hdf5", Simulation(train=ROWS, val=64, test=64, pixels=1024))
        convert(folder / "shards", **files, order="source")
        for case in CASES:
            for workers, target in TARGETS.items():
                rates = measure(case, folder, workers, options.rounds)
                ratios = [ours / bare for ours, bare in zip(rates["ours"], rates["bare"], strict=True)]
                results[f"{case.name}, {workers} workers"] = rates | {"ratios": ratios}
                ours, ratio = statistics.median(rates["ours"]), statistics.median(ratios)
                print(
                    f"{case.name:16} Ray Train, {workers} worker(s): {ours:7.1f} steps/s, {ratio:5.2f} of the bare loop "
                    f"({min(ratios):.2f} to {max(ratios):.2f})   target {target:g}",
                    flush=True,
                )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
