"""Cost of a cell's trials, estimated from rows, from timing runs stored in the store, or from an assumed speed."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from statistics import median
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from scaling.errors import UserError
from scaling.files import json_bytes
from scaling.folder import Folder
from scaling.model.ladder import train_flops
from scaling.parse import Amount, Count, Name, Natural, Positive, Strict, parse, parse_object
from scaling.results import Row
from scaling.study.declaration import Cell, Placement, Study
from scaling.sweep.modelled import RAY_TRAIN_SECONDS
from scaling.training.recipe import Compiled, Precision

SPEEDS = "speeds.json"
CPU_FLOOR_SECONDS, GPU_FLOOR_SECONDS, START_SECONDS = 3e-3, 8e-3, 1.0
"""Assumed without measurements: minimum step time on CPU and GPU (on a GPU limited by kernel launches: 7 to 10 ms were
measured at two layers on a slow host of an H200), and time from a trial's start to its first step."""
GPU_TFLOPS, CPU_TFLOPS = 312.0, 0.1
"""Assumed peaks: an A100 in bf16, and one CPU."""
ALIKE = 1.05
"""Steps whose FLOPs differ by less than this factor are one point of a curve."""


class Speed(Strict):
    """Speed of one worker training one rung: steps of `rows` spectra and `flops` in all. `share` counts GPUs, or CPUs.

    `memory` is the GPU's in bytes, else 0; `eval_seconds` is the time for scoring one spectrum.
    """

    device: Name
    memory: Natural
    gpu: bool
    share: Positive
    workers: Count
    precision: Precision
    width: Count
    tokens: Count
    rows: Count
    flops: Positive
    step_seconds: Positive
    eval_seconds: Amount
    start_seconds: Amount
    compiled: Compiled = False


class _Speeds(Strict):
    format: Literal[1]
    speeds: Annotated[list[Speed], Field(max_length=10_000)]


def read_speeds(store: Folder) -> list[Speed]:
    """Read the results of timing runs from the store.

    Raises:
        UserError: The file is damaged.
    """
    content = store.read(SPEEDS)
    if content is None:
        return []
    place, remedy = store.locate(SPEEDS), "delete it and run `scaling plan --measure` again"
    return parse(_Speeds, parse_object(content, place, remedy), place, remedy).speeds


def read_calibration(path: Path) -> list[Speed]:
    """Read the speeds measured by `scaling check --json`.

    Raises:
        UserError: The file is missing, or is not such a file.
    """
    remedy = "give what `scaling check --json` wrote"
    if not path.is_file():
        raise UserError(f"{path}: no such file; {remedy}")
    known = parse_object(path.read_bytes(), str(path), remedy)
    wanted = {name: value for name, value in known.items() if name in ("format", "speeds")}
    return parse(_Speeds, wanted, str(path), remedy).speeds


def keep_speeds(store: Folder, measured: list[Speed]) -> list[Speed]:
    """Store measurements, replacing earlier ones of the same kind; returns all."""
    kind = attrgetter("device", "share", "workers", "precision", "compiled", "width", "tokens", "rows")
    known = {kind(speed): speed for speed in [*read_speeds(store), *measured]}
    store.write(SPEEDS, json_bytes(_Speeds(format=1, speeds=list(known.values())).model_dump()))
    return list(known.values())


def speeds_of_rows(study: Study, rows: list[Row]) -> list[Speed]:
    """Speeds of a study's own trials."""
    cells = {cell.key: cell for cell in study.cells()}
    found = []
    for row in rows:
        cell = cells.get(row.cell)
        if cell is None or not (row.steps and row.samples_per_second > 0 and row.budget_share == 1.0):
            continue
        place, train_seconds = study.placement(cell), row.samples_seen / row.samples_per_second
        own = row.samples_seen / row.steps / row.workers
        scored = evaluations(study, cell) * row.num_val * row.eval_draws * row.steps / total_steps(study, cell)
        scoring = row.eval_seconds / scored if scored else 0.0
        tests = (row.num_val + row.num_test) * row.eval_draws * scoring
        start = row.wall_seconds - train_seconds - row.eval_seconds - tests
        found.append(
            Speed(
                device=row.device,
                memory=0,
                gpu=row.device != "cpu",
                share=share_of(place),
                workers=row.workers,
                precision=study.recipe.precision,
                width=cell.width,
                tokens=study.model(cell.width).num_tokens,
                rows=max(1, round(own)),
                flops=row.train_flops / row.steps / row.workers,
                step_seconds=train_seconds / row.steps,
                eval_seconds=scoring * row.workers,
                start_seconds=max(0.0, start) if math.isfinite(start) else 0.0,
                compiled=place.compiled,
            )
        )
    return found


def share_of(placement: Placement) -> float:
    """A worker's share of its device, in GPUs or CPUs."""
    return placement.gpus or placement.cpus


def total_steps(study: Study, cell: Cell) -> int:
    """Optimiser steps of a trial, including the decays of its branches."""
    *shorter, whole = study.recipe.runs(cell.num_spectra)
    return whole.total + sum(run.total - run.fork for run in shorter)


def evaluations(study: Study, cell: Cell) -> int:
    """Number of validation passes of a trial."""
    return sum(len(study.recipe.evaluation_steps(run)) for run in study.recipe.runs(cell.num_spectra))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialCost:
    """A trial's wall time in seconds (until its first step, per step, for all evaluations, in total) and its source."""

    start: float
    step: float
    evaluation: float
    seconds: float
    source: str


class Costs:
    """Estimated durations of trials, from measurements in the same precision and the most similar placement available.

    Between rungs, seconds are interpolated in the logarithm of the FLOPs per step; below the smallest rung a step takes as
    long as there, above the largest the FLOP rate is constant. For another share of a device, only the time in excess of
    the smallest step is scaled, as that one is limited by the host. Communication between workers is included only if such
    trials have rows.
    """

    def __init__(
        self,
        study: Study,
        rows: list[Speed],
        timed: list[Speed],
        *,
        tflops: float | None = None,
        mfu: float = 0.2,
        scored: tuple[int, int] = (0, 0),
    ) -> None:
        """`scored` are the numbers of validation and test spectra; `tflops` and `mfu` replace missing measurements.

        Raises:
            UserError: A speed is not positive.
        """
        if not (tflops is None or 0 < tflops < math.inf) or not 0 < mfu <= 1:
            raise UserError(f"--tflops {tflops} --mfu {mfu}: the first must be positive, the second in (0, 1]")
        self.study, self.tflops, self.mfu, self.scored = study, tflops, mfu, scored
        precision = study.recipe.precision
        self.rows, self.timed = ([s for s in each if s.precision == precision] for each in (rows, timed))
        self._known: dict[tuple[int, Placement], tuple[float, float, float, str]] = {}

    def trial(self, cell: Cell) -> TrialCost:
        """Cost of one trial of the cell."""
        study, place = self.study, self.study.placement(cell)
        key = (cell.width, place)
        if key not in self._known:
            self._known[key] = self._worker(cell.width, place)
        step, scoring, start, source = self._known[key]
        val, test = self.scored
        ends = len(study.recipe.shares) * (val + test)
        spectra = (evaluations(study, cell) * val + ends) * study.data.rules.eval_draws
        evaluation = spectra * scoring / place.workers
        seconds = start + total_steps(study, cell) * step + evaluation
        return TrialCost(start=start, step=step, evaluation=evaluation, seconds=seconds, source=source)

    def _worker(self, width: int, place: Placement) -> tuple[float, float, float, str]:
        """For one worker: seconds per step, per scored spectrum, and until the first step; and their source."""
        config, ray_train = self.study.model(width), place.host == "ray_train"
        rows = -(-self.study.recipe.batch_size // place.workers)
        flops = float(train_flops(config, rows))
        alike = self._alike(place, config.num_tokens)
        if not alike:
            peak = self.tflops or (GPU_TFLOPS if place.gpus else CPU_TFLOPS)
            floor = GPU_FLOOR_SECONDS if place.gpus else CPU_FLOOR_SECONDS
            step = floor + flops / (peak * 1e12 * self.mfu * min(1.0, share_of(place)))
            start = START_SECONDS + RAY_TRAIN_SECONDS * ray_train
            return step, step / rows / 3, start, f"assumed: {peak:g} TFLOP/s x {self.mfu:.0%}"
        share, smallest = share_of(place), min(speed.step_seconds for speed in alike)
        points = [
            (s.flops, smallest + (s.step_seconds - smallest) * s.share / share, s.eval_seconds * s.share / share)
            for s in alike
        ]
        step = interpolated([(f, seconds) for f, seconds, _ in points], flops)
        scoring = interpolated([(f / s.rows, e) for s, (f, _, e) in zip(alike, points, strict=True)], flops / rows)
        measured = alike[0] in self.rows
        start = median(speed.start_seconds for speed in alike) + RAY_TRAIN_SECONDS * (ray_train and not measured)
        devices = ", ".join(sorted({speed.device for speed in alike}))
        return step, scoring, start, f"{'rows' if measured else 'timing run'} on {devices}"

    def _alike(self, place: Placement, tokens: int) -> list[Speed]:
        """The speeds most similar to a worker's: tokens, compilation, workers and share; rows before timing runs."""
        wanted = (place.workers, share_of(place))
        best: list[Speed] = []
        for pool in (self.rows, self.timed):
            mine = [speed for speed in pool if speed.gpu == (place.gpus > 0)]
            mine = [speed for speed in mine if speed.tokens == tokens] or mine
            mine = [speed for speed in mine if speed.compiled == place.compiled] or mine
            same = [speed for speed in mine if (speed.workers, speed.share) == wanted]
            if same:
                return same
            best = best or mine
        return best


def interpolated(points: list[tuple[float, float]], x: float) -> float:
    """Median of values at equal x, log-linearly interpolated; constant below the range, proportional above it."""
    groups: defaultdict[int, list[tuple[float, float]]] = defaultdict(list)
    for place, value in points:
        groups[round(math.log(place) / math.log(ALIKE))].append((place, value))
    middle = [np.median(groups[key], axis=0) for key in sorted(groups)]
    places, values = np.log([[*p] for p in middle]).T
    return float(np.exp(np.interp(math.log(x), places, values)) * max(1.0, x / math.exp(places[-1])))
