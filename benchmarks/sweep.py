"""Overhead of the sweep: utilisation, and comparison with the same trials in a bare pool of processes.

    python -m benchmarks.sweep                    # the demo without its trials of two workers: about 10 minutes on 2 cores

The study runs with `scaling run`'s own code on a cluster of this machine's CPUs. Utilisation is the sum of the trials' wall seconds
divided by devices times wall time, from the first trial's start to the last one's end. Then the pool trains the same trials at the
same rates, in the order in which the sweep finished them: no searcher, no rounds to wait for, no dashboards.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from experiments.demo import STUDY as DEMO
from scaling.results import Row
from scaling.study.declaration import Cell, Placement, Study
from scaling.study.prepare import shards_path
from scaling.study.store import Store, StudyFolder

CPUS = os.cpu_count() or 1


def begun_and_ended(folder: StudyFolder, row: Row) -> tuple[float, float]:
    """Start and end time of a trial, from its row's file."""
    ended = (Path(folder.store.uri) / folder.name / "trials" / row.trial / "row.json").stat().st_mtime
    return ended - row.wall_seconds, ended


def train_again(task: tuple[Study, str, str, Cell, int, float, str]) -> float:
    """Run one trial of the sweep in a process of the pool; returns its validation error."""
    from scaling.sweep.sweep import Sweep

    study, store, cache, cell, number, lr, rival = task
    sweep = Sweep.prepare(
        study, StudyFolder(Store(f"{store}/pool"), study.name), shards_path(study, Store(store)), Path(cache)
    )
    sweep = dataclasses.replace(sweep, access=dict.fromkeys(study.data.num_spectra, "mapped"))
    trial = dataclasses.replace(sweep.trial(cell, number, lr), rival=rival)
    return trial.run(lambda metrics: None).val_error


def main() -> None:
    """Run both and print the ratios."""
    from scaling.sweep.run import run_study

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=list(DEMO.widths))
    widths = tuple(parser.parse_args().widths)
    study = dataclasses.replace(DEMO, widths=widths, placements=(Placement(),))
    with tempfile.TemporaryDirectory(prefix="benchmark-sweep-") as root:
        store, cache = f"{root}/store", Path(root) / "cache"
        rows = run_study(study, store, address=None, cache=cache, retry=False, say=print)
        folder = StudyFolder(Store(store), study.name)
        times = [begun_and_ended(folder, row) for row in rows]
        wall = max(end for _, end in times) - min(begin for begin, _ in times)
        busy = sum(end - begin for begin, end in times)
        cells = {cell.key: cell for cell in study.cells()}
        order = sorted(rows, key=lambda row: begun_and_ended(folder, row)[1])
        firsts = {row.cell: row.trial for row in reversed(order)}
        tasks = [
            (
                study,
                store,
                str(cache),
                cells[row.cell],
                int(row.trial[-2:]),
                row.lr,
                firsts[row.cell] if row.trial[-2:] > "00" else "",
            )
            for row in order
        ]
        started = time.perf_counter()
        with ProcessPoolExecutor(CPUS, mp_context=get_context("spawn")) as pool:
            errors = list(pool.map(train_again, tasks))
        bare = time.perf_counter() - started
        same = sum(error == row.val_error or row.status != "done" for error, row in zip(errors, order, strict=True))
        print(
            f"{len(rows)} trials on {CPUS} CPUs: sweep {wall:.0f} s, utilisation {busy / (CPUS * wall):.2f}; bare pool {bare:.0f} s "
            f"with its start, ratio {wall / bare:.2f}; {same} of {len(rows)} errors the same to the last bit"
        )


if __name__ == "__main__":
    main()
