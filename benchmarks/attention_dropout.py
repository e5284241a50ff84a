"""Effect of dropout of attention weights on the error: test MAE with and without it, from the same seeds.

    python -m benchmarks.attention_dropout [--seeds 4] [--samples 81920] [--json OUT]

A model of width 64 with 65 tokens, dropout 0.1 elsewhere, on the demo's spectra with fixed noise, one thread; the recipe is the demo's in
bf16. A minute per run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import tempfile
from pathlib import Path

import torch

from benchmarks.small_demo import STUDY
from scaling.data.shards.convert import convert
from scaling.data.simulated.writer import write_simulation
from scaling.model.ladder import Ladder
from scaling.sweep.cluster import ray_cluster
from scaling.training.loop import train
from scaling.training.recipe import Budget
from scaling.training.task import Context, Task

LADDER = Ladder(num_pixels=1024, patch_size=16)
WIDTH, NUM_SPECTRA, LR = 64, 4096, 1.2e-3


def test_mae(shards: Path, cache: Path, attention_dropout: float, seed: int, samples: int) -> float:
    """Train once and return the test MAE in dex."""
    recipe = dataclasses.replace(STUDY.recipe, budget=Budget(samples=samples), precision="bf16")
    task = Task(
        shards=shards,
        cache_root=cache,
        rules=STUDY.data.rules,
        num_spectra=NUM_SPECTRA,
        model=dataclasses.replace(LADDER.rung(WIDTH), attention_dropout=attention_dropout),
        recipe=recipe,
        lr=LR,
        seed=seed,
    )
    context = Context(
        rank=0, world=1, device=torch.device("cpu"), report=lambda metrics, state: None, load=lambda: None
    )
    outcome = train(task, context)
    assert outcome.test is not None, outcome.error
    return outcome.test.mae


def main() -> None:
    """Measure, print, and write JSON if requested."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--samples", type=int, default=81_920, help="spectra seen by a run")
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list[float]] = {"0.1": [], "0.0": []}
    with tempfile.TemporaryDirectory(prefix="attention-dropout-") as root:
        folder = Path(root)
        with ray_cluster(None):
            source = dataclasses.replace(STUDY.data.source, train=NUM_SPECTRA)
            convert(folder / "shards", **write_simulation(folder / "hdf5", source), order="source")
        for seed in range(options.seeds):
            for name, values in found.items():
                values.append(test_mae(folder / "shards", folder / "cache", float(name), seed, options.samples))
                print(f"seed {seed}, attention dropout {name}: test MAE {values[-1]:.4f} dex", flush=True)
    ratios = [without / with_it for with_it, without in zip(found["0.1"], found["0.0"], strict=True)]
    error = statistics.stdev(ratios) / math.sqrt(len(ratios)) if len(ratios) > 1 else math.nan
    print(f"MAE without ÷ with dropout of attention weights: {statistics.mean(ratios):.3f} ± {error:.3f}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
