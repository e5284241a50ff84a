"""The store and the only module that defines its paths: a folder, or any URI that pyarrow's file systems open.

STORE/<study>/study.json, results.parquet, limit.json, anchors/<name>.json, report/, .running; optuna.journal, tune/ where it is local
STORE/<study>/trials/<trial>/row.json, state.pt, model.safetensors, config.json, progress.csv,
                            events.out.tfevents.trial{,-final},
                            row-0.25.json and model-0.25.safetensors of a branch at a quarter of the budget
STORE/data/<simulation>/hdf5, shards
"""

from __future__ import annotations

import csv
import hashlib
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from scaling.errors import UserError
from scaling.files import user_cache
from scaling.folder import Folder
from scaling.results import ERROR_RATE, MAE, REMEDY, Row, to_table
from scaling.retry import side_by_side


@dataclass(frozen=True, slots=True)
class Store(Folder):
    """The folder of all studies."""

    def simulated(self, digest: str) -> Path:
        """Folder of the simulated spectra with this digest, and of their shards.

        Raises:
            UserError: The store is not local; HDF5 files need a file system.
        """
        if self.local is None:
            raise UserError(
                f"--store {self.uri}: simulated spectra need a local store; use a folder, or a study on shards"
            )
        return self.local / "data" / digest


@dataclass(frozen=True, slots=True)
class StudyFolder:
    """One study in a store."""

    store: Store
    name: str

    @property
    def views(self) -> Path:
        """Local folder of Optuna's journal and Tune's experiment, views of the rows: in the store or user cache."""
        root = self.store.local
        if root is None:
            digest = hashlib.sha256(self.store.uri.encode()).hexdigest()[:12]
            root = user_cache("views") / digest
        path = root / self.name
        path.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def journal(self) -> Path:
        """Optuna's journal; it can be rebuilt from the rows."""
        return self.views / "optuna.journal"

    @property
    def table_path(self) -> str:
        """Path of `results.parquet` within the store."""
        return f"{self.name}/results.parquet"

    @property
    def limit_path(self) -> str:
        """Path of `limit.json` within the store."""
        return f"{self.name}/limit.json"

    @property
    def ray_train_storage(self) -> str:
        """Location of Ray Train's bookkeeping while a trial runs; no result depends on it."""
        return self.store.locate(f"{self.name}/ray-train")

    @property
    def running_path(self) -> str:
        """Path within the store of the lock or lease of the active `scaling run`."""
        return f"{self.name}/.running"

    def clear_ray_train_storage(self) -> None:
        """Remove Ray Train's bookkeeping of a finished sweep."""
        self.store.delete_folder(f"{self.name}/ray-train")

    def read_declaration(self) -> bytes | None:
        """The study's declaration at its last run."""
        return self.store.read(f"{self.name}/study.json")

    def write_declaration(self, content: bytes) -> None:
        """Store the study's declaration beside its results."""
        self.store.write(f"{self.name}/study.json", content)

    def read_limit(self) -> bytes | None:
        """The information limit of the study's test spectra, if known."""
        return self.store.read(self.limit_path)

    def write_limit(self, content: bytes) -> None:
        """Store the information limit beside the results."""
        self.store.write(self.limit_path, content)

    def read_anchors(self) -> list[tuple[str, bytes]]:
        """Anchor scores of the study, sorted by name, each with its location for messages."""
        paths = [f"{self.name}/anchors/{file}" for file in self.store.files(f"{self.name}/anchors")]
        found = [(path, self.store.read(path)) for path in paths if path.endswith(".json")]
        return [(self.store.locate(path), content) for path, content in found if content is not None]

    def write_anchor(self, name: str, content: bytes) -> str:
        """Store an anchor's score; returns its location."""
        path = f"{self.name}/anchors/{name}.json"
        self.store.write(path, content)
        return self.store.locate(path)

    def trial(self, key: str) -> TrialFolder:
        """The folder of one trial."""
        return TrialFolder(self.store, f"{self.name}/trials/{key}")

    def rows(self) -> list[Row]:
        """The rows of all finished trials, by trial name."""
        return self._rows("row.json".__eq__)

    def rows_with_branches(self) -> list[Row]:
        """All rows, including branches (shorter budgets) and those of unfinished trials."""
        return self._rows(lambda name: name.startswith("row") and name.endswith(".json"))

    def _rows(self, wanted: Callable[[str], bool]) -> list[Row]:
        names = [(self.trial(key), name) for key, there in self._trials().items() for name in there if wanted(name)]
        return [row for row in side_by_side(lambda each: each[0].read(each[1]), names) if row is not None]

    def _trials(self) -> dict[str, list[str]]:
        """The contents of each trial's folder, from a few requests for all."""
        found: dict[str, list[str]] = {}
        for path in self.store.tree(f"{self.name}/trials"):
            key, _, name = path.partition("/")
            found.setdefault(key, []).append(name)
        return found

    def with_state(self) -> list[str]:
        """Names of the trials with a saved state to resume from."""
        return [key for key, names in self._trials().items() if "state.pt" in names]

    def unfinished(self) -> dict[str, str]:
        """Trials that were started but have no row, with the last line of their curve."""
        found = {}
        begun = [key for key, names in self._trials().items() if "progress.csv" in names and "row.json" not in names]
        for key, curve in zip(begun, side_by_side(lambda key: self.trial(key).read_progress(), begun), strict=True):
            if curve is not None:
                found[key] = _last_point(curve)
        return found

    def write_table(self, rows: list[Row]) -> None:
        """Replace `results.parquet`."""
        buffer = io.BytesIO()
        pq.write_table(to_table(rows), buffer)
        self.store.write(self.table_path, buffer.getvalue())

    def publish_report(self, folder: Path) -> str:
        """Copy a finished report into the store; returns the location of its page."""
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                self.store.write(f"{self.name}/report/{file.relative_to(folder).as_posix()}", file.read_bytes())
        return self.store.locate(f"{self.name}/report/index.html")


@dataclass(frozen=True, slots=True)
class TrialFolder:
    """One trial in a store: its results, and the state to resume from."""

    store: Store
    path: str

    def read_row(self) -> Row | None:
        """The trial's row, if it is finished."""
        return self.read("row.json")

    def read(self, name: str) -> Row | None:
        """A row of this trial, its own or a branch's, or None.

        Raises:
            UserError: The file is not a row, or is another trial's.
        """
        path = f"{self.path}/{name}"
        content, place = self.store.read(path), self.store.locate(path)
        if content is None:
            if self.store.local and (self.store.local / path).is_dir():
                raise UserError(f"{place}: a folder in place of a results row; {REMEDY}")
            return None
        row, (study, trial) = Row.from_json(content, place), self.path.split("/trials/")
        own = (row.study, row.trial) == (study, trial) and trial.startswith(f"{row.cell}-t")
        if not own or name != f"{_of_share('row', row.budget_share)}.json":
            raise UserError(f"{place}: is that of study {row.study}, cell {row.cell}, trial {row.trial}: {REMEDY}")
        return row

    def await_row(self, seconds: float) -> Row | None:
        """The trial's row; if it is not visible yet, retries with growing waits for up to `seconds`.

        A client of a network file system may cache the absence of a file. Opening its folder makes the client ask the
        server again.
        """
        deadline, wait = time.monotonic() + seconds, 0.1
        while True:
            if self.store.local:
                self.store.files(self.path)
            row = self.read_row()
            if row is not None or time.monotonic() >= deadline:
                return row
            time.sleep(min(wait, max(0.0, deadline - time.monotonic())))
            wait *= 2

    def write_row(self, row: Row) -> None:
        """Write a branch's row, or the trial's own, which finishes it; a failed one never replaces an existing row.

        The state to resume from is then deleted, unless the trial failed and may be retried; so are temporary files of
        killed processes, on a file system without nameless files.
        """
        path, content = f"{self.path}/{_of_share('row', row.budget_share)}.json", row.to_json().encode()
        if row.status == "failed":
            self.store.write_if_absent(path, content)
            return
        self.store.write(path, content)
        if row.budget_share == 1.0:
            for name in self.store.files(self.path):
                if name == "state.pt" or name.endswith(".tmp"):
                    self.store.delete(f"{self.path}/{name}")

    def write_model(self, content: bytes, config: bytes, share: float = 1.0) -> None:
        """Write the best weights, of the whole budget or of a branch, and the config, common to the whole trial."""
        self.store.write(f"{self.path}/config.json", config)
        self.store.write(f"{self.path}/{_of_share('model', share)}.safetensors", content)

    def write_progress(self, csv: str, events: bytes) -> None:
        """Write the curve so far, as CSV and for TensorBoard, which follows its open file."""
        self.store.write(f"{self.path}/progress.csv", csv.encode())
        self.store.extend(f"{self.path}/events.out.tfevents.trial", events)

    def write_final_events(self, events: bytes) -> None:
        """Write settings and final metrics for TensorBoard, in a file that it reads after the curve's."""
        self.store.write(f"{self.path}/events.out.tfevents.trial-final", events)

    def read_progress(self) -> str | None:
        """Read the curve so far, as CSV."""
        content = self.store.read(f"{self.path}/progress.csv")
        return None if content is None else content.decode(errors="replace")

    def write_state(self, content: bytes) -> None:
        """Write the state to resume from."""
        self.store.write(f"{self.path}/state.pt", content)

    def read_state(self, limit: int | None = None) -> bytes | None:
        """Read the last state, or its first `limit` bytes."""
        return self.store.read(f"{self.path}/state.pt", limit)

    @property
    def state_place(self) -> str:
        """Path or URI of the state, for messages."""
        return self.store.locate(f"{self.path}/state.pt")

    def set_state_aside(self) -> None:
        """Rename a damaged state to state.pt.damaged."""
        self.store.rename(f"{self.path}/state.pt", f"{self.path}/state.pt.damaged")

    def delete_row(self) -> None:
        """Delete a failed trial's row, so that the trial is retried."""
        self.store.delete(f"{self.path}/row.json")


def _last_point(curve: str) -> str:
    try:
        *_, last = csv.DictReader(io.StringIO(curve))
        measure = ERROR_RATE if ERROR_RATE.val in last else MAE
        return f"step {float(last['step']):.0f}, val {measure.named(float(last[measure.val]))}"
    except (ValueError, KeyError, TypeError):
        return "its progress.csv cannot be read; it is rewritten when the trial resumes"


def _of_share(name: str, share: float) -> str:
    return name if share == 1.0 else f"{name}-{share!r}"
