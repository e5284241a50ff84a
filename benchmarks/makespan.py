"""How well the sweep packs a cluster: its own searcher, with modelled trials, on simulated devices and a simulated clock.

    python -m benchmarks.makespan

A study of about 2,000 trials, from quarters of a GPU to four whole ones, on 8, 64 and 512 GPUs. The makespan is compared with its
lower bound: the larger of all work over all devices and the longest chain of trials that wait for each other (the anchors' rounds,
then the rounds of the slowest cell and its further seed). A trial takes its FLOPs at a fifth of an A100's peak for each device, 20 s
more to start under Ray Train; errors follow a law with scatter, so that cells stop after different numbers of trials. It also
times what the searcher does for a suggestion and for a completion, at the beginning and at the end.
"""

from __future__ import annotations

import argparse
import dataclasses
import heapq
import json
import math
import time
from collections import defaultdict
from types import SimpleNamespace

import numpy as np

from analysis.example import example_rows
from scaling.data.seeds import stable_seed
from scaling.model.ladder import count_parameters, train_flops
from scaling.results import Row
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
from scaling.sweep.rates import Rates
from scaling.sweep.search import SweepSearch

START_SECONDS = 20.0
SPEED = 0.2 * 312e12
SMALL = 0.25
"""Of a trial that shares a GPU with three others: the part of the device's speed that it gets."""

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
TEMPLATE = Row(**json.loads(example_rows().iloc[:1].to_json(orient="records"))[0])


class Silent:
    """Stands for what shows and records."""

    def __getattr__(self, name: str):
        return lambda *args, **kwargs: None


class Model:
    """Trials that take as long as their FLOPs, with errors from a law."""

    def __init__(self, study: Study) -> None:
        self.study = study

    def seconds(self, cell: Cell) -> float:
        """What a trial of the cell takes."""
        placement = self.study.placement(cell)
        speed = SPEED * placement.workers * min(1.0, placement.gpus)
        start = START_SECONDS if placement.host == "ray_train" else 0.0
        return start + train_flops(self.study.model(cell.width), 25_600_000) / speed

    def row(self, trial) -> Row:
        """What it finds."""
        cell = trial.cell
        params = count_parameters(self.study.model(cell.width)).reach_loss
        away = math.log(trial.lr / (3e-4 * (256 / cell.width) ** 0.8 * (cell.num_spectra / 50_000) ** 0.1))
        rng = np.random.default_rng(stable_seed("makespan", trial.key))
        error = (0.05 + 10 * params**-0.4 + 5 * cell.num_spectra**-0.4) * math.exp(0.05 * away**2 + 0.01 * rng.normal())
        return dataclasses.replace(
            TEMPLATE, cell=cell.key, trial=trial.key, lr=trial.lr, seed=cell.seed, val_mae_dex=error, test_mae_dex=error
        )


def simulate(study: Study, gpus: int) -> dict[str, float]:
    """Run the study on nodes of eight GPUs; returns its makespan, bound and costs in seconds."""
    model, now = Model(study), 0.0
    offers = [SimpleNamespace(id=f"n{i}", host=f"n{i}", cpus=64.0, gpus=8.0) for i in range(gpus // 8)]
    nodes = SimpleNamespace(
        look=lambda: offers, problem="", hosts=lambda ids: "", trial_finished=lambda: None, pending=lambda: ""
    )
    rates = Rates(study, [])

    def make(cell: Cell, number: int, lr: float, **_):
        return SimpleNamespace(cell=cell, number=number, lr=lr, key=cell.trial(number), about=dict)

    search = SweepSearch(study, make, rates, nodes, Silent(), Silent(), lambda bundles: None, clock=lambda: now)
    events: list[tuple[float, str, str]] = []
    queued: list[str] = []
    work, count, costs = 0.0, 0, defaultdict(list)

    def start(name: str) -> None:
        search.on_trial_start(name)
        heapq.heappush(events, (now + START_SECONDS, name, "begins"))
        heapq.heappush(events, (now + model.seconds(search.live[name].trial.cell), name, "ends"))

    while True:
        while True:
            started = time.perf_counter()
            config = search.suggest(f"t{count}")
            costs["suggest"].append(time.perf_counter() - started)
            if not isinstance(config, dict):
                break
            if search.live[f"t{count}"].queued:
                queued.append(f"t{count}")
            else:
                start(f"t{count}")
            count += 1
        if not events:
            break
        now, name, what = heapq.heappop(events)
        if what == "begins":  # a trial under Ray Train has its workers
            search.on_trial_result(name, {})
            continue
        attempt = search.live[name]
        work += model.seconds(attempt.trial.cell) * attempt.placement.workers * attempt.placement.gpus
        started = time.perf_counter()
        search.on_trial_result(name, {"row": model.row(attempt.trial).to_json()})
        search.on_trial_complete(name, {})
        costs["complete"].append(time.perf_counter() - started)
        if follower := next((other for other in queued if search.live[other].nodes == attempt.nodes), None):
            queued.remove(follower)
            start(follower)
    assert not rates.remaining(), "the simulated study did not finish"
    rounds = {
        cell: len([k for k in rates.rows[cell] if k != 2]) for cell in rates.rows
    }  # trials 1 and 2 run side by side
    chain = max(model.seconds(cell) * rounds[cell] for cell in rates.anchors)
    chain += max(
        sum(model.seconds(other) * rounds[other] for other in {rates.first(cell), cell}) for cell in rates.rows
    )
    first = np.median(costs["suggest"][:50]), np.median(costs["complete"][:50])
    last = np.median(costs["suggest"][-500:]), np.median(costs["complete"][-50:])
    return {
        "trials": count,
        "makespan": now,
        "bound": max(work / gpus, chain),
        "work": work / gpus,
        "costs": (*first, *last),
    }


def main() -> None:
    """Print a line for each number of devices."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 64, 512])
    for gpus in parser.parse_args().gpus:
        found = simulate(STUDY, gpus)
        ratio, busy = found["makespan"] / found["bound"], found["work"] / found["makespan"]
        costs = ", ".join(f"{1e3 * cost:.2f}" for cost in found["costs"])
        print(
            f"{gpus:4} GPUs: {found['trials']} trials, makespan {found['makespan'] / 3600:.2f} h, ÷ lower bound {ratio:.3f}, "
            f"devices busy {busy:.1%}; a suggestion, a completion: at the beginning, at the end: {costs} ms",
            flush=True,
        )


if __name__ == "__main__":
    main()
