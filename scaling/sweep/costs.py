"""What a trial of a cell takes: from rows, from a timing run remembered in the store, else from an assumed speed."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
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
"""Assumed where nothing is measured: of any step (on a GPU the launch of its kernels: 7 to 10 ms were measured at two layers
on a slow host of an H200), and from a trial's start to its first step."""
GPU_TFLOPS, CPU_TFLOPS = 312.0, 0.1
"""Assumed peaks: an A100's in bf16, and of one CPU."""
ALIKE = 1.05
"""Steps whose FLOPs differ by less are one point of a curve."""


class Speed(Strict):
    """How fast one worker trains one rung; `rows` spectra a step, of `flops` in all. `share` counts GPUs, or CPUs.

    `memory` is a GPU's bytes, else 0; `eval_seconds` are of one spectrum's scoring.
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

    @property
    def kind(self) -> tuple[object, ...]:
        """What a new measurement replaces."""
        return (
            self.device,
            self.share,
            self.workers,
            self.precision,
            self.compiled,
            self.width,
            self.tokens,
            self.rows,
        )


class _Speeds(Strict):
    format: Literal[1]
    speeds: Annotated[list[Speed], Field(max_length=10_000)]


def read_speeds(store: Folder) -> list[Speed]:
    """What timing runs left in the store.

    Raises:
        UserError: The file is damaged.
    """
    content = store.read(SPEEDS)
    if content is None:
        return []
    place, remedy = store.locate(SPEEDS), "delete it and run `scaling plan --measure` again"
    return parse(_Speeds, parse_object(content, place, remedy), place, remedy).speeds


def read_calibration(path: Path) -> list[Speed]:
    """The speeds that `scaling check --json` found.

    Raises:
        UserError: The file is missing, or no such file.
    """
    remedy = "give what `scaling check --json` wrote"
    if not path.is_file():
        raise UserError(f"{path}: no such file; {remedy}")
    known = parse_object(path.read_bytes(), str(path), remedy)
    wanted = {name: value for name, value in known.items() if name in ("format", "speeds")}
    return parse(_Speeds, wanted, str(path), remedy).speeds


def keep_speeds(store: Folder, measured: list[Speed]) -> list[Speed]:
    """Add to what is remembered, in place of earlier measurements of the same kind; returns all."""
    known = {speed.kind: speed for speed in [*read_speeds(store), *measured]}
    store.write(SPEEDS, json_bytes(_Speeds(format=1, speeds=list(known.values())).model_dump()))
    return list(known.values())


def speeds_of_rows(study: Study, rows: list[Row]) -> list[Speed]:
    """What a study's own trials took."""
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
    """What a worker has of its device: GPUs, or CPUs."""
    return placement.gpus or placement.cpus


def total_steps(study: Study, cell: Cell) -> int:
    """Optimiser steps of a trial, with the decays of its branches."""
    *shorter, whole = study.recipe.runs(cell.num_spectra)
    return whole.total + sum(run.total - run.fork for run in shorter)


def evaluations(study: Study, cell: Cell) -> int:
    """Validation passes of a trial."""
    return sum(len(study.recipe.evaluation_steps(run)) for run in study.recipe.runs(cell.num_spectra))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialCost:
    """A trial's seconds on the clock: until its first step, of a step, of all evaluations, and in all; and where they are from."""

    start: float
    step: float
    evaluation: float
    seconds: float
    source: str


class Costs:
    """Seconds of trials. Of what was measured, that of the same precision is used, and of the most similar placement there is.

    Between rungs seconds are interpolated in the logarithms of the FLOPs of a step; below the smallest a step takes no less,
    above the largest it takes as many FLOPs a second. On another share of a device only what exceeds the smallest step
    is scaled: that one is taken by the host. What several workers exchange counts only where such trials have rows.
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
        """`scored` are the spectra of validation and test. `tflops` is assumed, with `mfu`, where nothing is measured.

        Raises:
            UserError: if a speed is not positive.
        """
        if not (tflops is None or 0 < tflops < math.inf) or not 0 < mfu <= 1:
            raise UserError(f"--tflops {tflops} --mfu {mfu}: the first must be positive, the second in (0, 1]")
        self.study, self.tflops, self.mfu, self.scored = study, tflops, mfu, scored
        precision = study.recipe.precision
        self.rows, self.timed = ([s for s in each if s.precision == precision] for each in (rows, timed))
        self._known: dict[tuple[int, Placement], tuple[float, float, float, str]] = {}

    def trial(self, cell: Cell) -> TrialCost:
        """What one trial of the cell takes."""
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
        """Of a worker: seconds of a step, of one spectrum's scoring, and until the first step; and where they are from."""
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
        """The speeds most like a worker's: of as many tokens, compiled alike, of its workers and share, rows before timing runs."""
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
    """The median of values at equal places, between them along straight lines in logarithms; level below, proportional above."""
    groups: defaultdict[int, list[tuple[float, float]]] = defaultdict(list)
    for place, value in points:
        groups[round(math.log(place) / math.log(ALIKE))].append((place, value))
    middle = [np.median(groups[key], axis=0) for key in sorted(groups)]
    places, values = np.log([[*p] for p in middle]).T
    return float(np.exp(np.interp(math.log(x), places, values)) * max(1.0, x / math.exp(places[-1])))
