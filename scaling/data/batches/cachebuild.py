"""How a split's arrays get into a node's cache: shards are decoded in parallel, checked, and appended."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock
from numpy import ndarray

from scaling.data.batches.cachefolder import LOCK, SOURCE, Watermark, array_path, file_size, part_path
from scaling.data.batches.evict import make_room
from scaling.data.batches.noise import FixedNoise
from scaling.data.shards.manifest import Manifest, Shard, temporary_name, write_json
from scaling.data.shards.shardfile import ERROR, FLUX, Checksum, column_values, row_groups
from scaling.errors import UserError

MAX_THREADS = 8
MARK_BYTES = 2**28
"""The watermark moves each time so much has been written: what a kill can cost."""


@dataclass(frozen=True, slots=True)
class Job:
    """A shard to read: where its rows go, and the arrays that lack them."""

    index: int
    shard: Shard
    first_row: int
    arrays: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheBuild:
    """What is wanted of one split, and where.

    Attributes:
        manifest: Of the shard set.
        split: ``train``, ``val`` or ``test``.
        shards: The first shards of the split.
        folder: The split's folder in the cache.
        arrays: Names of the arrays wanted.
        noise: What the array that is neither flux nor error is made with.
    """

    manifest: Manifest
    split: str
    shards: list[Shard]
    folder: Path
    arrays: tuple[str, ...]
    noise: FixedNoise | None

    def is_complete(self) -> bool:
        """Whether nothing is missing, as far as files' sizes tell."""
        return not self._jobs() and not any(self._is_cut_short(array) for array in self.arrays)

    def run(self, limit: int | None) -> None:
        """Append what is missing. The caller holds the folder, and its lock.

        Args:
            limit: Of the whole cache, in bytes; unused splits are evicted to stay below.

        Raises:
            UserError: A shard is damaged, or there is no room; what is complete stays.
        """
        self._tidy()
        jobs = self._jobs()
        sizes = {array: self._bytes(max(self._mark(array).rows, self._num_rows())) for array in self.arrays}
        with self._no_space_is_a_user_error():
            try:
                self._reserve(sizes, limit)
                self._append(jobs)
            finally:
                for array in self.arrays:  # give back what was reserved and not reached
                    os.truncate(array_path(self.folder, array), self._bytes(self._mark(array).rows))

    def _mark(self, array: str) -> Watermark:
        return Watermark.of(self.folder, array)

    def _num_rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    def _bytes(self, rows: int) -> int:
        return rows * self.manifest.pixels * 4

    def _is_cut_short(self, array: str) -> bool:
        """Whether somebody has removed or truncated an array's file."""
        return file_size(array_path(self.folder, array)) < self._bytes(self._mark(array).rows)

    def _jobs(self) -> list[Job]:
        """The shards that an array or the parameters still lack, in row order."""
        first_rows = accumulate((shard.rows for shard in self.shards), initial=0)
        reached = {array: self._mark(array).shards for array in self.arrays}
        jobs = []
        for index, (shard, first_row) in enumerate(zip(self.shards, first_rows, strict=False)):
            arrays = tuple(array for array in self.arrays if index >= reached[array])
            if arrays or not part_path(self.folder, index).is_file():
                jobs.append(Job(index, shard, first_row, arrays))
        return jobs

    def _tidy(self) -> None:
        """Remove what an older format, a killed writer or a truncation has left; keep what is complete."""
        (self.folder / "params").mkdir(exist_ok=True)
        for leftover in self.folder.rglob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        for older in self.folder.glob("[0-9]*/flux.npy"):
            shutil.rmtree(older.parent, ignore_errors=True)
        for array in self.arrays:
            path = array_path(self.folder, array)
            if self._is_cut_short(array):
                (self.folder / f"{array}.json").unlink(missing_ok=True)
                path.unlink(missing_ok=True)  # not written again: a process may map it
            path.touch()
            os.truncate(path, self._bytes(self._mark(array).rows))

    def _reserve(self, sizes: dict[str, int], limit: int | None) -> None:
        """Make the files as long as they will be, so that other builders' accounts include them."""
        root = self.folder.parent
        paths = {array_path(self.folder, array): size for array, size in sizes.items()}
        growth = sum(size - file_size(path) for path, size in paths.items())
        with FileLock(root / LOCK):
            if limit is not None:
                make_room(root, growth, limit)
            if (free := shutil.disk_usage(root).free) < growth:
                raise self._no_room(f"{growth / 1e9:.3g} GB more is needed and {free / 1e9:.3g} GB is free")
            for path, size in paths.items():
                os.truncate(path, size)
        write_json(
            self.folder / SOURCE, {"dataset": os.path.abspath(self.manifest.dest), "pixels": self.manifest.pixels}
        )

    def _append(self, jobs: list[Job]) -> None:
        """Read shards in threads, each a row group at a time, and move the watermarks in row order behind them."""
        done: list[Job] = []
        with ExitStack() as stack:
            files = {}
            for array in self.arrays:
                files[array] = os.open(array_path(self.folder, array), os.O_WRONLY)
                stack.callback(os.close, files[array])
            pool = ThreadPoolExecutor(min(MAX_THREADS, len(os.sched_getaffinity(0))))
            try:
                for job, _ in zip(jobs, pool.map(lambda job: self._copy(job, files), jobs), strict=True):
                    done.append(job)
                    if sum(self._bytes(job.shard.rows) * len(job.arrays) for job in done) >= MARK_BYTES:
                        self._move_marks(done)
                        done = []
            finally:
                pool.shutdown(cancel_futures=True)
                for array, mark in _reached(done).items():
                    os.truncate(files[array], self._bytes(mark.rows))  # on a full disk, room for the watermark itself
                self._move_marks(done)

    def _copy(self, job: Job, files: dict[str, int]) -> None:
        """Write one shard's rows, and check them."""
        path = self.manifest.dest / job.shard.file
        checksum, params, row = Checksum(), [], job.first_row
        for table in row_groups(path):
            if not {FLUX, ERROR} <= set(table.column_names):
                break
            checksum.update(table)
            for array in job.arrays:
                _write_at(files[array], self._values(table, array, row), self._bytes(row))
            params.append(table.drop_columns([FLUX, ERROR]).replace_schema_metadata())
            row += table.num_rows
        if checksum.hexdigest() != job.shard.checksum:
            raise UserError(
                f"{path} differs from the manifest's checksum: remove this shard and manifest.json, and run `scaling shard` again"
            )
        part = part_path(self.folder, job.index)
        temporary = temporary_name(part)
        pq.write_table(pa.concat_tables(params), temporary)
        _sync(temporary)
        os.replace(temporary, part)

    def _values(self, table: pa.Table, array: str, first_row: int) -> ndarray:
        if array in (FLUX, ERROR):
            return column_values(table, array)
        assert self.noise is not None
        flux, error = column_values(table, FLUX), column_values(table, ERROR)
        return self.noise.add(flux, error, split=self.split, first_row=first_row)

    def _move_marks(self, done: list[Job]) -> None:
        """Put successive shards behind the watermarks, once their rows are on the disk."""
        for array, mark in _reached(done).items():
            _sync(array_path(self.folder, array))
            mark.save(self.folder, array)

    @contextmanager
    def _no_space_is_a_user_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise self._no_room("the disk filled up meanwhile; what is complete stays") from error

    def _no_room(self, what: str) -> UserError:
        return UserError(
            f"{self.folder}: no room for the node's copy of {self.split}: {what}: set SCALING_CACHE to a folder on a larger disk, "
            "or remove unused splits with `scaling cache --evict`"
        )


def _reached(done: list[Job]) -> dict[str, Watermark]:
    """How far successive shards bring the arrays that lacked them."""
    return {array: Watermark(job.first_row + job.shard.rows, job.index + 1) for job in done for array in job.arrays}


def _write_at(file: int, values: ndarray, offset: int) -> None:
    """Write an array at a place in a file, which fails cleanly on a full disk, as a store into a map would not."""
    content = values.astype("<f4", order="C", copy=False).data.cast("B")
    while content:
        written = os.pwrite(file, content, offset)
        content, offset = content[written:], offset + written


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
