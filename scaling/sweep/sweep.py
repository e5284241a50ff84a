"""The sweep: all trials of all cells in one Tune run. The rows in the store determine what is left to do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from scaling.baselines import Baseline, LightGBM
from scaling.data.batches.evaluation import check_labels, evaluation_pin
from scaling.data.batches.rules import Standardisation
from scaling.data.batches.training import Access
from scaling.data.shards.manifest import MANIFEST, SPLITS, Manifest
from scaling.data.shards.shard import is_as_listed
from scaling.errors import UserError
from scaling.files import Location
from scaling.results import Row
from scaling.retry import side_by_side
from scaling.study.declaration import BaselineCell, Cell, Study
from scaling.study.prepare import check_sources
from scaling.study.store import StudyFolder
from scaling.sweep.baselines import BaselineTask
from scaling.sweep.code import code_commit
from scaling.sweep.rates import Rates
from scaling.sweep.trial import Trial
from scaling.training.recorder import other_configuration, state_head

HEAD_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """A study ready to run: its data exist, and its declaration agrees with the rows in the store."""

    study: Study
    folder: StudyFolder
    shards: Location
    cache_root: Path
    eval_pin: str
    code_commit: str
    access: dict[int, Access] = field(default_factory=dict)

    @classmethod
    def prepare(cls, study: Study, folder: StudyFolder, shards: Location, cache_root: Path) -> Sweep:
        """Check the declaration against the data.

        Raises:
            UserError: The shards are damaged or from other files, D exceeds the data, pixels differ, or a label is
                unknown, constant, or not finite in some row.
        """
        manifest = Manifest.read(shards)
        check_sources(study, manifest)
        largest, rules = study.data.num_spectra[-1], study.data.rules
        if largest > manifest.num_rows("train"):
            raise UserError(
                f"Study.data.num_spectra: {largest} spectra asked for, {shards} has {manifest.num_rows('train')} in train; "
                "drop the rung or shard more files"
            )
        if manifest.pixels != study.ladder.num_pixels:
            raise UserError(f"Ladder.num_pixels = {study.ladder.num_pixels}: {shards} has {manifest.pixels} pixels")
        listed = [shard for split in SPLITS for shard in manifest.shards(split)]
        found = side_by_side(lambda shard: is_as_listed(manifest.folder, shard), listed)
        if lost := next((shard for shard, intact in zip(listed, found, strict=True) if not intact), None):
            raise UserError(
                f"{manifest.folder.locate(lost.file)}: this shard is missing or not the one in {MANIFEST}; "
                "run the same `scaling shard` command again"
            )
        check_labels(manifest, rules)
        return cls(
            study=study,
            folder=folder,
            shards=shards,
            cache_root=cache_root,
            eval_pin=evaluation_pin(shards, rules),
            code_commit=code_commit(),
        )

    def trial(
        self, cell: Cell, number: int, lr: float, *, rival: Row | None = None, nodes: tuple[str, ...] = ()
    ) -> Trial:
        """A trial of this study."""
        return Trial(
            nodes=nodes,
            rival=rival.trial if rival is not None and self.study.search.prune else "",
            study=self.study,
            folder=self.folder,
            shards=self.shards,
            cache_root=self.cache_root,
            cell=cell,
            number=number,
            lr=lr,
            access=self.access[cell.num_spectra],
            fingerprint=self.fingerprint(cell),
            eval_pin=self.eval_pin,
            code_commit=self.code_commit,
        )

    def baseline_task(self, baseline: Baseline, cells: Iterable[BaselineCell]) -> BaselineTask:
        """A task of this study that fits a baseline to some numbers of spectra."""
        return BaselineTask(
            study=self.study,
            folder=self.folder,
            shards=self.shards,
            cache_root=self.cache_root,
            baseline=baseline,
            fingerprints={cell.num_spectra: self.fingerprint(cell) for cell in cells},
            eval_pin=self.eval_pin,
            code_commit=self.code_commit,
        )

    def open_baselines(self, rows: Iterable[Row]) -> list[BaselineTask]:
        """The baseline tasks without rows, the longest first.

        Ridge is one task for all numbers of spectra, because one pass over the shards gives them all.
        """
        done = {row.cell for row in rows}
        tasks = []
        for baseline in self.study.baselines:
            cells = [c for c in self.study.baseline_cells() if c.family == baseline.family and c.key not in done]
            groups = (
                [[cell] for cell in reversed(cells)] if isinstance(baseline, LightGBM) else [cells] if cells else []
            )
            tasks += [self.baseline_task(baseline, group) for group in groups]
        return tasks

    def fingerprint(self, cell: Cell | BaselineCell) -> str:
        """Hash of everything that determines a cell's results: declaration, spectra, normalisation and evaluation."""
        digest = Manifest.load(self.shards).digest("train", cell.num_spectra)
        normalisation = Standardisation.of(self.shards, self.study.data.rules).digest()
        return self.study.fingerprint(cell, f"{digest} {normalisation} {self.eval_pin}")

    def rows(self) -> list[Row]:
        """The rows of this study's cells and baselines, at the whole budget.

        Raises:
            UserError: A row (including those of branches and unfinished trials) was made under another declaration.
        """
        cells: tuple[Cell | BaselineCell, ...] = (*self.study.cells(), *self.study.baseline_cells())
        by_cell = {cell.key: cell for cell in cells}
        mine = [row for row in self.folder.rows_with_branches() if row.cell in by_cell]
        fingerprints = {key: self.fingerprint(cell) for key, cell in by_cell.items()}
        for row in mine:
            if row.fingerprint != fingerprints[row.cell]:
                raise UserError(
                    f"{self.folder.store.locate(self.study.name)}: trial {row.trial} was run under another declaration or other data "
                    "(see study.json there); give the changed study another name, or use another store"
                )
        return [row for row in mine if row.budget_share == 1.0]

    def left(self, *, retry: bool = False) -> tuple[Rates, list[BaselineTask]]:
        """The existing rows with the due trials, and the remaining baselines; with `retry`, without rows that say failed.

        Raises:
            UserError: A row, or the state of a trial without one, was made under another declaration or with other data.
        """
        rows = [row for row in self.rows() if not (retry and row.status == "failed")]
        self._check_states({row.trial for row in rows})
        return Rates(self.study, rows), self.open_baselines(rows)

    def _check_states(self, finished: set[str]) -> None:
        """Compare the declaration with the headers of the saved states of unfinished trials."""
        own = {cell.trial(number): cell for cell in self.study.cells() for number in range(self.study.search.trials)}
        begun = [key for key in self.folder.with_state() if key in own and key not in finished]
        states = side_by_side(lambda key: self.folder.trial(key).read_state(HEAD_BYTES), begun)
        for key, state in zip(begun, states, strict=True):
            head = state_head(state or b"")
            if head is not None and head["identity"] != self.fingerprint(own[key]):
                raise UserError(other_configuration(self.folder.trial(key).state_place))
