"""The store: the only module that spells paths. A folder, or any URI that pyarrow's filesystems open.

STORE/<study>/study.json, optuna.journal, results.parquet, limit.json, report/
STORE/<study>/trials/<trial>/row.json, state.pt, model.safetensors, progress.csv, events.out.tfevents.trial
STORE/data/<simulation>/hdf5, shards
"""

from __future__ import annotations

import hashlib
import io
import os
import posixpath
import shutil
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from scaling.errors import UserError
from scaling.study.rows import ERROR_RATE, MAE, Row, to_table


@dataclass(frozen=True, slots=True)
class Store:
    """Reads and writes whole files, atomically: a reader never sees half of one."""

    uri: str

    def __post_init__(self) -> None:
        """Make a local path absolute, so that workers elsewhere resolve it alike."""
        if "://" not in self.uri:
            object.__setattr__(self, "uri", str(Path(self.uri).expanduser().absolute()))

    @property
    def local(self) -> Path | None:
        """The store as a local path, or None where it is elsewhere."""
        return (
            None if "://" in self.uri and not self.uri.startswith("file://") else Path(self.uri.removeprefix("file://"))
        )

    def locate(self, path: str) -> str:
        """The place of a file or folder of the store, as a local path or a URI; options of the store's URI stay at its end."""
        base, mark, options = self.uri.partition("?") if "://" in self.uri else (self.uri, "", "")
        return f"{base.rstrip('/')}/{path}{mark}{options}"

    def _open(self) -> tuple[fs.FileSystem, str]:
        try:
            return fs.FileSystem.from_uri(self.uri)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise UserError(
                f"--store {self.uri}: cannot be opened ({error}); give a folder or a URI such as s3://bucket/path"
            ) from error

    def write(self, path: str, content: bytes) -> None:
        """Write a file under a temporary name and rename it (object stores publish a file when it is closed)."""
        filesystem, root = self._open()
        target = posixpath.join(root, path)
        temporary = f"{target}.{uuid.uuid4().hex[:8]}.partial" if self.local else target
        filesystem.create_dir(posixpath.dirname(target), recursive=True)
        with filesystem.open_output_stream(temporary) as stream:
            stream.write(content)
        if temporary != target:
            filesystem.move(temporary, target)

    def read(self, path: str) -> bytes | None:
        """The content of a file, or None if there is none."""
        filesystem, root = self._open()
        try:
            with filesystem.open_input_stream(posixpath.join(root, path)) as stream:
                return stream.read()
        except FileNotFoundError:
            return None

    def delete(self, path: str) -> None:
        """Remove a file if it is there."""
        filesystem, root = self._open()
        if filesystem.get_file_info(posixpath.join(root, path)).type != fs.FileType.NotFound:
            filesystem.delete_file(posixpath.join(root, path))

    def delete_folder(self, path: str) -> None:
        """Remove a folder and all in it, if it is there."""
        filesystem, root = self._open()
        if filesystem.get_file_info(posixpath.join(root, path)).type != fs.FileType.NotFound:
            filesystem.delete_dir(posixpath.join(root, path))

    def folders(self, path: str = "") -> list[str]:
        """Names of the folders directly below `path`, sorted."""
        filesystem, root = self._open()
        selector = fs.FileSelector(posixpath.join(root, path), allow_not_found=True)
        return sorted(
            info.base_name for info in filesystem.get_file_info(selector) if info.type == fs.FileType.Directory
        )

    def files(self, path: str = "") -> list[str]:
        """Names of the files directly below `path`, sorted."""
        filesystem, root = self._open()
        selector = fs.FileSelector(posixpath.join(root, path), allow_not_found=True)
        return sorted(info.base_name for info in filesystem.get_file_info(selector) if info.type == fs.FileType.File)

    def check_writable(self) -> None:
        """Write and remove a probe.

        Raises:
            UserError: if the store cannot be written.
        """
        probe = f".probe-{uuid.uuid4().hex[:8]}"
        try:
            self.write(probe, b"")
            self.delete(probe)
        except OSError as error:
            raise UserError(
                f"--store {self.uri}: cannot be written ({error}); choose another or mend its permissions"
            ) from error

    def simulated(self, digest: str) -> Path:
        """Where simulated spectra of a given digest and their shards lie.

        Raises:
            UserError: if the store is not local; HDF5 files need a file system.
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
    def journal(self) -> Path:
        """Optuna's journal: in the store where it is local, else on this machine (it is rebuilt from the rows)."""
        root = self.store.local
        if root is None:
            digest = hashlib.sha256(self.store.uri.encode()).hexdigest()[:12]
            root = Path(tempfile.gettempdir()) / f"spectral-scaling-journals-{os.getuid()}" / digest
        path = root / self.name / "optuna.journal"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def table_path(self) -> str:
        """`results.parquet` within the store."""
        return f"{self.name}/results.parquet"

    @property
    def ray_train_storage(self) -> str:
        """Where Ray Train keeps its bookkeeping while a trial runs: nothing that a result depends on."""
        return self.store.locate(f"{self.name}/ray-train")

    def clear_ray_train_storage(self) -> None:
        """Remove Ray Train's bookkeeping of a finished sweep."""
        self.store.delete_folder(f"{self.name}/ray-train")

    def read_declaration(self) -> bytes | None:
        """The study as it was declared when last run."""
        return self.store.read(f"{self.name}/study.json")

    def write_declaration(self, content: bytes) -> None:
        """Keep the study's declaration beside its results."""
        self.store.write(f"{self.name}/study.json", content)

    def read_limit(self) -> bytes | None:
        """The information limit of the study's test spectra, where it is known."""
        return self.store.read(f"{self.name}/limit.json")

    def write_limit(self, content: bytes) -> None:
        """Keep the information limit beside the results."""
        self.store.write(f"{self.name}/limit.json", content)

    def trial(self, key: str) -> TrialFolder:
        """The folder of one trial."""
        return TrialFolder(self.store, f"{self.name}/trials/{key}")

    def rows(self) -> list[Row]:
        """The rows of all finished trials, by trial name."""
        found = (self.trial(key).read_row() for key in self.store.folders(f"{self.name}/trials"))
        return [row for row in found if row is not None]

    def rows_with_branches(self) -> list[Row]:
        """The same with the results of shorter budgets, those of unfinished trials too."""
        keys = self.store.folders(f"{self.name}/trials")
        return [row for key in keys for row in self.trial(key).read_rows()]

    def unfinished(self) -> dict[str, str]:
        """Trials that have begun but have no row, with the last line of their curve."""
        found = {}
        for key in self.store.folders(f"{self.name}/trials"):
            trial = self.trial(key)
            curve = trial.read_progress()
            if curve and trial.read_row() is None:
                header, *points = curve.splitlines()
                last = dict(zip(header.split(","), points[-1].split(","), strict=True))
                measure = ERROR_RATE if ERROR_RATE.val in last else MAE
                found[key] = f"step {last['step']}, val {measure.tell(float(last[measure.val]))}"
        return found

    def write_table(self, rows: list[Row]) -> None:
        """Replace `results.parquet`."""
        buffer = io.BytesIO()
        pq.write_table(to_table(rows), buffer)
        self.store.write(self.table_path, buffer.getvalue())

    def publish_report(self, folder: Path) -> str:
        """Copy a finished report into the store; returns where its page is."""
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                self.store.write(f"{self.name}/report/{file.relative_to(folder).as_posix()}", file.read_bytes())
        shutil.rmtree(folder)
        return self.store.locate(f"{self.name}/report/index.html")


@dataclass(frozen=True, slots=True)
class TrialFolder:
    """One trial in a store: what it has measured, and the state it would resume from."""

    store: Store
    path: str

    def read_row(self) -> Row | None:
        """The trial's row, if it is finished."""
        content = self.store.read(f"{self.path}/row.json")
        return None if content is None else Row.from_json(content.decode(), self.store.locate(f"{self.path}/row.json"))

    def read_rows(self) -> list[Row]:
        """The trial's row and those of its branches, as far as they are there."""
        names = [name for name in self.store.files(self.path) if name.startswith("row") and name.endswith(".json")]
        contents = [(name, self.store.read(f"{self.path}/{name}")) for name in names]
        where = self.store.locate(self.path)
        return [Row.from_json(content.decode(), f"{where}/{name}") for name, content in contents if content is not None]

    def write_row(self, row: Row) -> None:
        """Write a branch's row, or the trial's own, which finishes it.

        The state to resume from is dropped after that, unless the trial failed and may be retried.
        """
        self.store.write(f"{self.path}/{_of_share('row', row.budget_share)}.json", row.to_json().encode())
        if row.budget_share == 1.0 and row.status != "failed":
            self.store.delete(f"{self.path}/state.pt")

    def write_model(self, content: bytes, share: float = 1.0) -> None:
        """The best weights, of the whole budget or of a branch."""
        self.store.write(f"{self.path}/{_of_share('model', share)}.safetensors", content)

    def write_progress(self, csv: str, events: bytes) -> None:
        """The curve so far, as CSV and for TensorBoard."""
        self.store.write(f"{self.path}/progress.csv", csv.encode())
        self.store.write(f"{self.path}/events.out.tfevents.trial", events)

    def read_progress(self) -> str | None:
        """The curve so far, as CSV."""
        content = self.store.read(f"{self.path}/progress.csv")
        return None if content is None else content.decode()

    def write_state(self, content: bytes) -> None:
        """The state to resume from."""
        self.store.write(f"{self.path}/state.pt", content)

    def read_state(self) -> bytes | None:
        """The last state written."""
        return self.store.read(f"{self.path}/state.pt")

    def write_error(self, message: str) -> None:
        """What went wrong in the last attempt."""
        self.store.write(f"{self.path}/error.txt", message.encode())

    def read_error(self) -> str | None:
        """What went wrong in the last attempt, if anything did."""
        content = self.store.read(f"{self.path}/error.txt")
        return None if content is None else content.decode()

    def delete_row(self) -> None:
        """Forget a failed trial's row, so that it is tried again."""
        self.store.delete(f"{self.path}/error.txt")
        self.store.delete(f"{self.path}/row.json")


def _of_share(name: str, share: float) -> str:
    return name if share == 1.0 else f"{name}-{share!r}"
