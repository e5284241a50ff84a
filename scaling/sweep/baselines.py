"""A study's baselines: trials of the same Tune run on CPUs left free by the others; rows are written at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from scaling.baselines import Baseline, LightGBM
from scaling.baselines.fitted import Fitted, answers
from scaling.baselines.ridge import fit_ridge
from scaling.data.batches import EvaluationSplit, Worker
from scaling.data.shards.manifest import Manifest
from scaling.files import Location
from scaling.results import Row
from scaling.study.declaration import BaselineCell, Placement, Study
from scaling.study.store import StudyFolder
from scaling.sweep.admission import Admission
from scaling.sweep.nodes import Node
from scaling.sweep.rows import Scored, baseline_row
from scaling.training.evaluate import score, score_detail


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineTask:
    """A baseline at some numbers of spectra, with everything that a worker needs to fit it and write its rows."""

    study: Study
    folder: StudyFolder
    shards: Location
    cache_root: Path
    baseline: Baseline
    fingerprints: dict[int, str]
    eval_pin: str
    code_commit: str
    nodes: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Its name in messages and in Tune's folder."""
        return f"{self.baseline.family}-d{max(self.fingerprints):08d}"

    def about(self) -> dict[str, float | str]:
        """The parameters shown in Tune's own results."""
        return {"family": self.baseline.family, "num_spectra": max(self.fingerprints)}

    @property
    def placement(self) -> Placement:
        """The resources it needs."""
        return Placement(cpus=self.baseline.cpus)

    def cell_of(self, num_spectra: int) -> BaselineCell:
        """Its cell at a number of spectra."""
        return BaselineCell(family=self.baseline.family, num_spectra=num_spectra, seed=self.study.seeds[0])

    def run(self) -> list[Row]:
        """Fit the numbers of spectra without a row, and write the rows.

        Raises:
            UserError: A shard is damaged, or a label is not finite.
        """
        torch.set_num_threads(self.baseline.cpus)
        rules, manifest = self.study.data.rules, Manifest.load(self.shards)
        worker = Worker(cache_root=self.cache_root, device=torch.device("cpu"))
        val, test = (EvaluationSplit.load(self.shards, rules, split, worker) for split in ("val", "test"))
        rows = {size: self.folder.trial(self.cell_of(size).trial(0)).read_row() for size in self.fingerprints}
        for fitted in self._fits(manifest, [size for size, row in rows.items() if row is None], val):
            found = [answers(fitted.predict, split) for split in (val, test)]
            first, second = (score(each, split) for each, split in zip(found, (val, test), strict=True))
            scored = Scored(
                val=first[0],
                test=second[0],
                others=list(zip(first[1], second[1], strict=True)),
                detail=score_detail(found[1], test, self.shards),
            )
            row = baseline_row(self, fitted.num_spectra, fitted, scored)
            self.folder.trial(row.trial).write_row(row)
            rows[fitted.num_spectra] = row
        return [row for row in rows.values() if row is not None]

    def _fits(self, manifest: Manifest, sizes: list[int], val: EvaluationSplit) -> Iterator[Fitted]:
        rules = self.study.data.rules
        if isinstance(self.baseline, LightGBM):
            from scaling.baselines.trees import fit_trees  # imported lazily: loads LightGBM

            for size in sizes:
                yield fit_trees(self.baseline, manifest, rules, size, self.study.seeds[0], val)
        elif sizes:
            yield from fit_ridge(manifest, rules, sizes, val)

    def fail(self, error: str) -> list[Row]:
        """Write "failed" rows where there are none; returns all its rows."""
        rows = []
        for size in self.fingerprints:
            row = baseline_row(self, size, None, Scored(), error)
            folder = self.folder.trial(row.trial)
            folder.write_row(row)
            rows.append(folder.read_row() or row)
        return rows


class Baselines:
    """Pending tasks, in order; each starts when trials leave enough CPUs free."""

    def __init__(self, tasks: list[BaselineTask], say: Callable[[str], None]) -> None:
        self.waiting, self.say = tasks, say

    def next(self, admission: Admission, offers: Iterable[Node]) -> BaselineTask | None:
        """A task that fits beside the running trials, with its node; None if there is none."""
        offers = list(offers)
        for task in self.waiting:
            if nodes := admission.place(task.placement, offers):
                self.waiting.remove(task)
                return dataclasses.replace(task, nodes=nodes)
        return None

    def finished(self, rows: Iterable[Row]) -> None:
        """Report what a task found, or why it failed."""
        for row in rows:
            scores = f"val {row.measure.named(row.val_error)}, test {row.measure.named(row.test_error)}"
            result = f"{scores} in {row.wall_seconds:.0f} s" if row.status == "done" else f"failed: {row.error}"
            self.say(f"{row.family} on {row.num_spectra:,} spectra: {result}")

    def lost(self, task: BaselineTask, reason: str) -> None:
        """Restart a task that ended without all its rows; the rows already written are kept."""
        self.waiting.append(task)
        self.say(f"{task.key}: lost ({reason}); it is started again")
