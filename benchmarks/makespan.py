"""How well the sweep packs a cluster: its own searcher with simulated trials, devices and clock.

    python -m benchmarks.makespan

A study of about 2,000 trials, from quarters of a GPU to four whole ones, on 8, 64 and 512 GPUs. The makespan is compared with its
lower bound: the larger of all work over all devices and the longest chain of trials that depend on each other (the anchors' rounds,
then the rounds of the slowest cell and its further seed). A trial takes its FLOPs at a fifth of an A100's peak per device, plus 20 s
to start under Ray Train; errors follow a law with scatter, so that cells stop after different numbers of trials. The searcher's time
per suggestion and per completion is also measured, at the beginning and at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np

from scaling.model.ladder import train_flops
from scaling.study.declaration import (
    Budget,
    Cell,
    Data,
    DataRules,
    Ladder,
    Placement,
    Recipe,
    Search,
    Simulation,
    Study,
)
from scaling.sweep.modelled import RAY_TRAIN_SECONDS, Cluster, occupied, simulate
from scaling.sweep.search import SweepSearch

SPEED = 0.2 * 312e12
STUDY = Study(
    name="modelled",
    question="?",
    data=Data(
        source=Simulation(train=2_000_000, val=1_000, test=1_000, pixels=4096),
        num_spectra=tuple(int(1_000 * 2 ** (k / 4)) for k in range(44)),
        rules=DataRules(noise="fixed"),
    ),
    ladder=Ladder(),
    widths=(32, 64, 96, 128, 160, 192, 256, 320, 384, 512, 640, 768),
    recipe=Recipe(budget=Budget(samples=25_600_000)),
    search=Search(trials=5),
    seeds=(1, 2),
    repeat_every=2,
    placements=(
        Placement(gpus=0.25, cpus=1),
        Placement(from_width=192, gpus=0.5, cpus=1),
        Placement(from_width=320, gpus=1, cpus=2),
        Placement(from_width=640, gpus=1, cpus=2, workers=2),
        Placement(from_width=768, gpus=1, cpus=2, workers=4),
    ),
)


def seconds(cell: Cell) -> float:
    """Duration of a cell's trial."""
    placement = STUDY.placement(cell)
    start = RAY_TRAIN_SECONDS if placement.host == "ray_train" else 0.0
    return start + train_flops(STUDY.model(cell.width), 25_600_000) / (SPEED * occupied(STUDY, placement))


@contextlib.contextmanager
def timed(method: Callable[..., Any]) -> Iterator[list[float]]:
    """Real durations of the calls of one of the searcher's methods, in seconds."""
    spent: list[float] = []

    def call(*arguments: Any) -> Any:
        started = time.perf_counter()
        found = method(*arguments)
        spent.append(time.perf_counter() - started)
        return found

    with mock.patch.object(SweepSearch, method.__name__, call):
        yield spent


def main() -> None:
    """Print one line per number of devices."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 64, 512])
    for gpus in parser.parse_args().gpus:
        with timed(SweepSearch.suggest) as suggest, timed(SweepSearch.on_trial_complete) as complete:
            found = simulate(STUDY, Cluster(nodes=gpus // 8, cpus=64.0, gpus=8.0), seconds)
        costs = [np.median(part) for part in (suggest[:50], complete[:50], suggest[-500:], complete[-50:])]
        print(
            f"{gpus:4} GPUs: {found.trials.total()} trials, makespan {found.wall / 3600:.2f} h, "
            f"÷ lower bound {found.wall / found.bound:.3f}, devices busy {found.utilisation:.1%}; a suggestion, a completion: "
            f"at the beginning, at the end: {', '.join(f'{1e3 * cost:.2f}' for cost in costs)} ms",
            flush=True,
        )


if __name__ == "__main__":
    main()
