"""Result and cost of the learning-rate search against a recorded dense sweep of an earlier demo (widths 8 to 32).

    python -m benchmarks.search                                     # replays the search on the recorded trials: seconds
    python -m benchmarks.search --record results/demo --workers 2   # trains the 234 trials again; not timed on an idle machine

Thirteen rates per cell, a factor sqrt(2) apart, from an eighth to eight times the declared one. The replay interpolates the logarithms
of errors and curves between recorded rates. Regret is the error at the selected rate over the lowest of the
cell, both on a quartic through the logarithms of the cell's thirteen errors: the minimum of thirteen noisy ones would be too low.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import math
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.small_demo import STUDY as DEMO
from scaling.results import Row
from scaling.study.declaration import Cell, Placement, Study
from scaling.sweep.modelled import template_row
from scaling.sweep.rates import Rates, best_row
from scaling.training import pruning
from scaling.training.pruning import Hopeless

RECORDED = Path(__file__).parent / "recorded" / "demo_rates.parquet"
FACTORS = 2 ** (np.arange(-6, 7) / 2)
STUDY = dataclasses.replace(DEMO, widths=DEMO.widths[1:], seeds=DEMO.seeds[:1], placements=(Placement(),))


class Cells:
    """The recorded trials of each cell, as functions of the logarithm of the rate."""

    def __init__(self, table: pd.DataFrame) -> None:
        self.lrs: dict[str, np.ndarray] = {}
        self.curves: dict[str, np.ndarray] = {}
        self.errors: dict[str, np.ndarray] = {}
        self.smooth: dict[str, np.ndarray] = {}
        for key, trials in table.sort_values("lr").groupby("cell"):
            self.lrs[key] = np.log(trials["lr"].to_numpy())
            self.curves[key] = np.log(np.stack(trials["curve"].to_numpy()))
            self.errors[key] = np.log(trials["val_mae_dex"].to_numpy())
            self.smooth[key] = np.polyfit(self.lrs[key], self.errors[key], 4)
        self.steps = np.asarray(table["steps"].iloc[0])

    def error(self, key: str, lr: float) -> float:
        """Validation error at a rate, interpolated between the recorded ones, in dex."""
        return float(np.exp(np.interp(math.log(lr), self.lrs[key], self.errors[key])))

    def curve(self, key: str, lr: float) -> np.ndarray:
        """The same at each evaluation of the trial, (evaluations,)."""
        columns = self.curves[key].T
        return np.exp([np.interp(math.log(lr), self.lrs[key], column) for column in columns])

    def regret(self, key: str, lr: float) -> float:
        """The relative excess of the error at a rate over the cell's lowest."""
        places = np.linspace(self.lrs[key][0], self.lrs[key][-1], 200)
        lowest = np.polyval(self.smooth[key], places).min()
        at = np.clip(math.log(lr), places[0], places[-1])
        return float(np.exp(np.polyval(self.smooth[key], at) - lowest)) - 1


def replay(study: Study, cells: Cells) -> dict[str, np.ndarray]:
    """Search every cell on recorded trials; returns regret, trials, cost (in whole trials) and pruned winners."""
    rates = Rates(study, [])
    cost = {cell: 0.0 for cell in rates.rows}
    while due := [(cell, *one) for cell in rates.rows for one in rates.due(cell)]:
        for cell, number, lr in due:
            row, share = _trial(study, rates, cells, cell, number, lr)
            cost[cell] += share
            rates.add(row)
    found = {cell: best_row(rows) for cell, rows in rates.rows.items()}
    return {
        "regret": np.array([cells.regret(cell.key, best.lr) for cell, best in found.items()]),
        "trials": np.array([len(rows) for rows in rates.rows.values()]),
        "cost": np.array(list(cost.values())),
        "first": np.array([abs(math.log2(best.lr / rates.rows[cell][0].lr)) for cell, best in found.items()]),
        "pruned": np.array([sum(row.status == "pruned" for row in rows.values()) for rows in rates.rows.values()]),
    }


def _trial(study: Study, rates: Rates, cells: Cells, cell: Cell, number: int, lr: float) -> tuple[Row, float]:
    rival, share, status = rates.rival(cell, number), 1.0, "done"
    if study.search.prune and rival is not None:
        best = dict(zip(cells.steps.tolist(), np.minimum.accumulate(cells.curve(cell.key, rival.lr)), strict=True))
        rule = Hopeless(rival=rival.trial, first_step=math.ceil(pruning.AFTER * cells.steps[-1]), best=best)
        mine = np.minimum.accumulate(cells.curve(cell.key, lr))
        stops = [step for step, error in zip(cells.steps.tolist(), mine, strict=True) if rule.reason(step, error)]
        share, status = (stops[0] / cells.steps[-1], "pruned") if stops else (1.0, "done")
    error = cells.error(cell.key, lr) if status == "done" else math.nan
    known = {"cell": cell.key, "trial": cell.trial(number), "lr": lr, "status": status}
    return dataclasses.replace(template_row(), **known, val_mae_dex=error, test_mae_dex=error), share


def winners_pruned(cells: Cells) -> tuple[int, int, float]:
    """With every other trial of a cell as rival: how often the rule stops the cell's best, and the closest call."""
    pruned, pairs, closest = 0, 0, 0.0
    for key in cells.lrs:
        curves = np.minimum.accumulate(np.exp(cells.curves[key]), axis=1)[
            :, cells.steps >= pruning.AFTER * cells.steps[-1]
        ]
        winner = curves[np.argmin(cells.errors[key])]
        ratios = (winner / curves).max(axis=1)
        pruned, pairs, closest = (
            pruned + int((ratios > pruning.MARGIN).sum()),
            pairs + len(ratios) - 1,
            max(closest, ratios.max()),
        )
    return pruned, pairs, closest


def record(store: str, workers: int) -> None:
    """Train all trials of the dense sweep on the demo's shards, in separate processes, and store their curves."""
    tasks = [(store, cell, i) for cell in STUDY.cells() for i in range(len(FACTORS))]
    with ProcessPoolExecutor(workers) as pool:
        found = list(pool.map(_record, tasks))
    RECORDED.parent.mkdir(exist_ok=True)
    pd.DataFrame(found).to_parquet(RECORDED)


def _record(task: tuple[str, Cell, int]) -> dict[str, object]:
    from scaling.study.prepare import shards_path
    from scaling.study.store import Store, StudyFolder
    from scaling.sweep.sweep import Sweep

    store, cell, i = task
    study = dataclasses.replace(STUDY, name="dense")
    folder = StudyFolder(Store(f"{store}/dense"), "dense")
    sweep = Sweep.prepare(study, folder, shards_path(DEMO, Store(store)), Path(store) / "cache")
    sweep = dataclasses.replace(sweep, access=dict.fromkeys(study.data.num_spectra, "mapped"))
    trial = sweep.trial(cell, i, study.search.centre(cell.width) * float(FACTORS[i]))
    row = trial.run(lambda metrics: None)
    curve = pd.read_csv(io.StringIO(trial.output.read_progress()))
    return {name: getattr(row, name) for name in ("cell", "lr", "val_mae_dex", "test_mae_dex", "device_seconds")} | {
        "steps": curve["step"].tolist(),
        "curve": curve["val_mae_dex"].tolist(),
    }


def main() -> None:
    """Record, or replay with the declared search and alternatives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", metavar="STORE")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    if options.record:
        record(options.record, options.workers)
    cells = Cells(pd.read_parquet(RECORDED))
    study = dataclasses.replace(STUDY, search=DEMO.search)
    pruned, pairs, closest = winners_pruned(cells)
    print(
        f"pruning stops the cell's best beside {pruned} of {pairs} other trials; closest call {closest:.2f} of {pruning.MARGIN}"
    )
    print(
        "factor  prune  trials a cell  cost ÷ dense  regret: mean, median, worst  pruned  best / predicted rate (octaves)"
    )
    for factor in (1.5, 2.0, 2.5, 3.0, 4.0):
        for prune in (True, False):
            search = dataclasses.replace(study.search, factor=factor, prune=prune)
            found = replay(dataclasses.replace(study, search=search), cells)
            regret = 100 * found["regret"]
            declared = " <- declared" if (factor, prune) == (DEMO.search.factor, DEMO.search.prune) else ""
            print(
                f"{factor:6g}  {prune!s:5}  {found['trials'].mean():13.2f}  {found['cost'].mean() / len(FACTORS):12.1%}  "
                f"{regret.mean():12.2f}% {np.median(regret):.2f}% {regret.max():.2f}%  {found['pruned'].sum():6d}  "
                f"{found['first'].mean():.2f}{declared}"
            )


if __name__ == "__main__":
    main()
