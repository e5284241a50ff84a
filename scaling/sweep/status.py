"""The status of a study from its store, on any machine, whether or not a run is active."""

from __future__ import annotations

from collections import Counter
from typing import Any

from scaling.console import duration
from scaling.study.declaration import Study
from scaling.study.store import StudyFolder
from scaling.sweep.progress import Progress
from scaling.sweep.rates import Rates


def study_status(folder: StudyFolder, study: Study) -> tuple[str, dict[str, Any]]:
    """Trials and cells done, the best cell, failures, and the unfinished trials with their latest error."""
    cells = {cell.key: cell for cell in study.cells()}
    baselines = {cell.key for cell in study.baseline_cells()}
    there = folder.rows()
    rows, fitted = [row for row in there if row.cell in cells], [row for row in there if row.cell in baselines]
    left = Rates(study, rows).remaining()
    progress = Progress(study, rows, print, devices=dict, remaining=lambda: left)
    unfinished = folder.unfinished()
    device = "GPU" if any(place.gpus for place in study.placements) else "CPU"
    work = progress.time_left.seconds_left(left, [], {device: 1.0})
    rest = f" | about {duration(work)} of work left for one {device}" if work and left else ""
    also = f" | baselines {len(fitted)}/{len(baselines)}" if baselines else ""
    lines = [f"{study.name}: {progress.line()}{rest}{also}"]
    lines += [
        f"  {row.trial}: {row.status}" + (f", {row.error}" if row.error else "")
        for row in (*rows, *fitted)
        if row.status not in ("done", "pruned")
    ]
    lines += [f"  {key}: begun, not finished ({last})" for key, last in unfinished.items()]
    states = Counter(row.status for row in rows)
    found = {
        "trials": len(rows) + sum(count for _, count in left),
        "rows": len(rows),
        "cells": len(cells),
        "cells_done": len(cells) - len(left),
        "baselines": len(baselines),
        "baselines_done": len(fitted),
        "states": dict(states),
        "unfinished": unfinished,
        "best": None if progress.best is None else {"cell": progress.best.cell, "trial": progress.best.trial}
        | {name: getattr(progress.best, name) for name in (progress.measure.val, progress.measure.test)},
    }  # fmt: skip
    return "\n".join(lines), found
