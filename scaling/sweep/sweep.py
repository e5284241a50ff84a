"""The sweep: all trials of all cells in one Tune run. The rows in the store say what is left to do."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scaling.data.batches.cache import cache_limit
from scaling.data.batches.evaluation import check_labels, evaluation_pin
from scaling.data.batches.rules import Standardisation
from scaling.data.batches.training import Access
from scaling.data.shards.manifest import MANIFEST, SPLITS, Manifest
from scaling.data.shards.shard import is_as_listed
from scaling.errors import UserError
from scaling.files import FullError, Location
from scaling.results import Row
from scaling.study.declaration import Cell, Study
from scaling.study.prepare import check_sources
from scaling.study.store import FULL, StudyFolder
from scaling.sweep.nodes import check_placements, choose_access, survey
from scaling.sweep.progress import Progress
from scaling.sweep.trial import Trial, code_commit, describe_exception
from scaling.training.recorder import other_configuration, state_head

DRIVER_MEMORY = 256 * 2**20
HEAD_BYTES = 4096
MAX_FAILURES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """A study about to run: its data are there, its declaration agrees with the rows that the store holds."""

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
            UserError: if the shards are of other files or damaged, D exceeds the data, pixels differ, or a label is
                unknown, constant, or not finite somewhere.
        """
        manifest = Manifest.load(shards)
        check_sources(study, manifest)
        largest, rules = study.data.num_spectra[-1], study.data.rules
        if largest > manifest.num_rows("train"):
            raise UserError(
                f"Study.data.num_spectra: {largest} spectra asked for, {shards} has {manifest.num_rows('train')} in train; "
                "drop the rung or shard more files"
            )
        if manifest.pixels != study.ladder.num_pixels:
            raise UserError(f"Ladder.num_pixels = {study.ladder.num_pixels}: {shards} has {manifest.pixels} pixels")
        listed = (shard for split in SPLITS for shard in manifest.shards(split))
        if lost := next((shard for shard in listed if not is_as_listed(manifest.folder, shard)), None):
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

    def trial(self, cell: Cell, number: int, lr: float) -> Trial:
        """A trial of this study."""
        return Trial(
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

    def fingerprint(self, cell: Cell) -> str:
        """Hash of all that determines the cell's results: its declaration, spectra, normalisation and evaluation."""
        digest = Manifest.load(self.shards).digest("train", cell.num_spectra)
        normalisation = Standardisation.of(self.shards, self.study.data.rules).digest()
        return self.study.fingerprint(cell, f"{digest} {normalisation} {self.eval_pin}")

    def rows(self) -> list[Row]:
        """The rows of this study's cells, of whole budgets.

        Raises:
            UserError: if a row, a branch's or an unfinished trial's too, was made under another declaration.
        """
        by_cell = {cell.key: cell for cell in self.study.cells()}
        mine = [row for row in self.folder.rows_with_branches() if row.cell in by_cell]
        fingerprints = {key: self.fingerprint(cell) for key, cell in by_cell.items()}
        for row in mine:
            if row.fingerprint != fingerprints[row.cell]:
                raise UserError(
                    f"{self.folder.store.locate(self.study.name)}: trial {row.trial} was run under another declaration or other data "
                    "(see study.json there); give the changed study another name, or use another store"
                )
        return [row for row in mine if row.budget_share == 1.0]

    def check(self) -> None:
        """Compare the declaration with the store: its rows, and the first lines of what unfinished trials resume from.

        Raises:
            UserError: if one of them was made under another declaration, or with other data.
        """
        finished = {row.trial for row in self.rows()}
        for cell in self.study.cells():
            for key in {cell.trial(number) for number in range(self.study.search.trials)} - finished:
                trial = self.folder.trial(key)
                head = state_head(trial.read_state(HEAD_BYTES) or b"")
                if head is not None and head["identity"] != self.fingerprint(cell):
                    raise UserError(other_configuration(trial.state_place))

    def remaining(self) -> int:
        """Trials that have no row yet."""
        keys = {cell.trial(k) for cell in self.study.cells() for k in range(self.study.search.trials)}
        return len(keys - {row.trial for row in self.rows()})


def run_sweep(sweep: Sweep, progress: Callable[[str], None], callbacks: list[Any]) -> list[Row]:
    """Run every trial that has no row, on the cluster that Ray is connected to. Returns all rows.

    Raises:
        UserError: if a cell can never run on this cluster, or the store is full.
    """
    import ray
    from ray import tune

    from scaling.sweep.search import CellSearch

    nodes = survey(sweep.shards, sweep.cache_root)
    check_placements(sweep.study, nodes)
    sweep = dataclasses.replace(
        sweep, access=choose_access(sweep.study, Manifest.load(sweep.shards), nodes, cache_limit())
    )
    if streamed := [n for n, access in sweep.access.items() if access == "streamed"]:
        progress(f"{', '.join(f'{n:,}' for n in streamed)} spectra are streamed from the shards; no node keeps a copy")
    rows = sweep.rows()
    tracker = Progress(sweep.study, rows, progress, devices=ray.cluster_resources, remaining=lambda: search.remaining())
    journal = str(sweep.folder.journal)
    search = CellSearch(sweep.study, sweep.trial, rows, journal, ray.cluster_resources, tracker.add)
    search.progress = tracker
    with tracker, tempfile.TemporaryDirectory(prefix="spectral-scaling-") as scratch:  # Tune's own snapshot; never read
        tuner = tune.Tuner(
            tune.with_resources(_trainable, _resources),
            tune_config=tune.TuneConfig(search_alg=search, num_samples=-1, reuse_actors=True),
            run_config=tune.RunConfig(
                name=sweep.study.name,
                storage_path=scratch,
                verbose=0,
                callbacks=callbacks,
                failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
                checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
            ),
        )
        tuner.fit()
    if search.no_room:
        raise UserError(search.no_room)
    sweep.folder.clear_ray_train_storage()
    return sweep.rows()


def _trainable(config: dict[str, Any]) -> None:
    from ray import tune
    from ray.tune.integration.ray_train import TuneReportCallback

    trial: Trial = config["trial"]
    try:
        trial.run(tune.report, TuneReportCallback)
    except FullError as error:
        with contextlib.suppress(FullError):  # the searcher finds out by itself
            trial.output.write_error(f"{FULL}{error}")
        raise
    except UserError as error:  # such as a damaged shard: trying again would not help
        trial.write_row(trial.failed_row(str(error)))
    except Exception as error:
        trial.output.write_error(describe_exception(error))
        raise


def _resources(config: dict[str, Any]) -> Any:
    from ray import tune

    trial: Trial = config["trial"]
    placement = trial.study.placement(trial.cell)
    if placement.host == "ray_train":
        # Ray Train asks for the workers' devices itself. The driver waits, and must not hold a CPU they may need.
        return tune.PlacementGroupFactory([{"memory": DRIVER_MEMORY}])
    return tune.PlacementGroupFactory([{"CPU": placement.cpus, "GPU": placement.gpus}])
