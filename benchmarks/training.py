"""Speed of a training step relative to the original's and to the CPU's peak: ratios of rates measured in one run.

    python -m benchmarks.training [--rounds 3] [--batch 32] [--json OUT]

step   samples/s of our step ÷ the original's (`benchmarks.original`) at equal batch on the same tensors: our model, loss, gradient
       clipping and optimiser with the same recipe, in bf16 and fp32, and in bf16 without dropout of attention weights
peak   model FLOP/s ÷ rate of large matrix products in that precision on as many threads, by rung and precision, dropout 0.1
where  breakdown of the time of the reference model's step in bf16
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.original import LR, WEIGHT_DECAY, OriginalModel, original_step
from scaling.data.batches.training import Access
from scaling.data.batches.worker import Worker
from scaling.model.ladder import Ladder, train_flops
from scaling.model.specvit import ModelConfig, SpecViT
from scaling.training.device import measure
from scaling.training.recipe import Budget, Precision, Recipe
from scaling.training.step import Stepper

CPU = torch.device("cpu")
WORKER = Worker(cache_root=Path(), device=CPU)
SMALL = Ladder(num_pixels=1024, patch_size=128)
CASES = ((SMALL, 8), (SMALL, 32), (Ladder(), 64), (Ladder(), 128), (Ladder(), 256), (Ladder(), 384))
TARGETS = {"bf16": 2.0, "bf16, no attention dropout": 3.0}
KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::convolution_backward", "aten::_convolution"),
    "softmax": ("aten::_softmax",),
    "random numbers": ("aten::random_", "aten::ge"),
    "copies and casts": ("aten::copy_", "aten::cat"),
    "GELU": ("aten::gelu", "aten::gelu_backward"),
    "layer norms": ("aten::native_layer_norm", "aten::native_layer_norm_backward"),
    "optimiser": ("aten::_fused_adamw_",),
}


@dataclasses.dataclass
class InMemory:
    """One batch, repeated: flux (row, pixel) and labels (row, label)."""

    flux: Tensor
    labels: Tensor
    steps_per_epoch: int = 1
    access: Access = "resident"
    worker: Worker = WORKER

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """The batch."""
        return self.flux, self.labels

    def global_rows(self, step: int) -> int:
        """Its number of rows."""
        return len(self.labels)

    def close(self) -> None:
        """No-op."""


def our_step(config: ModelConfig, precision: Precision, flux: Tensor, labels: Tensor) -> Callable[[], None]:
    """Create a function that takes one of our steps."""
    recipe = Recipe(budget=Budget(epochs=1), weight_decay=WEIGHT_DECAY, batch_size=len(labels), precision=precision)
    stepper = Stepper(config, recipe, InMemory(flux, labels), lr=LR, seed=0)
    (run,) = recipe.runs(len(labels))
    return lambda: stepper.step(0, run)


def rate(step: Callable[[], object], rows: int, seconds: float = 2.0) -> float:
    """Samples per second over some seconds, at least two steps."""
    steps, started = 0, time.perf_counter()
    while steps < 2 or time.perf_counter() - started < seconds:
        step()
        steps += 1
    return steps * rows / (time.perf_counter() - started)


def compare(config: ModelConfig, rows: int, rounds: int) -> dict[str, list[float]]:
    """Samples/s of the original step and of ours, alternately, several times."""
    quiet = dataclasses.replace(config, attention_dropout=0.0)
    flux, labels = torch.randn(rows, config.num_pixels), torch.randn(rows, 1)
    original = original_step(OriginalModel(config, SpecViT(config)))
    ways: dict[str, Callable[[], object]] = {
        "original way": lambda: original(flux, labels),
        "fp32": our_step(config, "fp32", flux, labels),
        "bf16": our_step(config, "bf16", flux, labels),
        "bf16, no attention dropout": our_step(quiet, "bf16", flux, labels),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for step in ways.values():
        step()
    for _ in range(rounds):
        for name, step in ways.items():
            found[name].append(rate(step, rows))
    return found


def where_time_goes(rows: int) -> dict[str, float]:
    """Fraction of time in the reference model's bf16 step, by kind of operation."""
    config = Ladder().rung(256)
    step = our_step(config, "bf16", torch.randn(rows, config.num_pixels), torch.randn(rows, 1))
    step()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        step()
    times = {event.key: event.self_cpu_time_total for event in found.key_averages()}
    total = sum(times.values())
    shares = {kind: sum(times.get(name, 0.0) for name in names) / total for kind, names in KINDS.items()}
    return shares | {"other element-wise work and dispatch": 1 - sum(shares.values())}


def main() -> None:
    """Measure, print tables, and write JSON if requested."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="repetitions, of which the median counts")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    peaks = {precision: measure(CPU, precision).peak_flops for precision in ("fp32", "bf16")}
    print(
        f"{torch.get_num_threads()} threads; matrix products reach "
        + ", ".join(f"{p / 1e9:,.0f} GFLOP/s in {n}" for n, p in peaks.items())
    )
    table: dict[str, dict[str, float]] = {}
    for ladder, width in CASES:
        config = ladder.rung(width)
        rates, flops = compare(config, options.batch, options.rounds), train_flops(config, 1)
        for name, values in rates.items():
            speed = statistics.median(values)
            ratio = statistics.median(a / b for a, b in zip(values, rates["original way"], strict=True))
            peak = flops * speed / peaks["bf16" if name.startswith("bf16") else "fp32"]
            table[f"w{width}, {name}"] = {"samples_per_second": speed, "ratio": ratio, "peak_share": peak}
            target = f"target {TARGETS[name]:g}" if name in TARGETS and width == 256 else ""
            print(
                f"{f'w{width}':>5} {name:28} {speed:9.1f} samples/s  {ratio:6.2f} of the original way  {peak:5.0%} of the peak  {target}"
            )
    shares = where_time_goes(options.batch)
    print("\nthe reference model's step in bf16:")
    for kind, share in shares.items():
        print(f"  {kind:38} {share:5.0%}")
    if options.json:
        options.json.write_text(json.dumps({"rates": table, "peaks": peaks, "shares": shares}, indent=1) + "\n")


if __name__ == "__main__":
    main()
