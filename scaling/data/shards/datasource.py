"""`SpectraDatasource`: HDF5 files of spectra for Ray Data."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy import ndarray
from ray.data import Datasource
from ray.data.block import BlockMetadata
from ray.data.context import DataContext
from ray.data.datasource import ReadTask

from scaling.data.shards.read import Unit, read_units
from scaling.data.shards.sources import Sources, inspect_sources
from scaling.data.spectra import ERROR, FLUX
from scaling.errors import UserError

UNIT_ROWS = 4096
"""Default number of rows per unit; the rows of a compressed chunk if those are more."""
TASK_BYTES = 5 * 2**26
"""Approximate size of a task's rows, which Ray Data holds until a writing task ends: two shards of 4096 by 4096."""


class SpectraDatasource(Datasource):
    """Spectra in HDF5 files of the PFS/BOSZ layout, as a Ray dataset.

    Each row has ``row_id``, its number in the concatenated files; ``flux`` and ``error``, (pixels,) float32, the
    file's values rounded once; and every column of the parameter table. Every node must see the files.

    The distribution of SNR over a million spectra, for example:

        dataset = ray.data.read_datasource(SpectraDatasource(paths, columns=["flux", "error"]))
        edges = np.linspace(0, 30, 61)
        count = lambda batch: {"count": [np.histogram(spectrum_snr(batch["flux"], batch["error"]), edges)[0]]}
        blocks = dataset.map_batches(count, batch_size=None).take_all()
        histogram = np.sum([block["count"] for block in blocks], axis=0)

    Args:
        paths: The files, which must have the same wavelength grid and parameter columns; or the result of `inspect_sources`
            for them.
        columns: Columns to read; all by default. Flux and error are both read if either is requested.
        pixels: Pixels to keep; all by default.
        rows: Rows to read, in the given order: a range or an array of row numbers, or a list of such units, each of which
            is read by one task. All by default.

    Raises:
        UserError: A file cannot be used, two are inconsistent, or there is no such column, pixel or row.
    """

    def __init__(
        self,
        paths: Iterable[Path | str] | Sources,
        *,
        columns: Sequence[str] | None = None,
        pixels: range | None = None,
        rows: range | ndarray | Sequence[range | ndarray] | None = None,
    ) -> None:
        super().__init__()
        self.sources = paths if isinstance(paths, Sources) else inspect_sources(Path(path) for path in paths)
        self._pixels = range(len(self.sources.wave)) if pixels is None else pixels
        if not 0 <= self._pixels.start < self._pixels.stop <= len(self.sources.wave):
            raise UserError(f"pixels {self._pixels}: give a range within 0 to {len(self.sources.wave)}")
        self._columns = self._known_columns(columns)
        self._units = self._as_units(range(self.sources.num_rows) if rows is None else rows)

    def _known_columns(self, columns: Sequence[str] | None) -> list[str]:
        known = self.sources.schema.names
        wanted = known if columns is None else [columns] if isinstance(columns, str) else list(columns)
        if unknown := [name for name in wanted if name not in known]:
            raise UserError(f"{self.sources.files[0].path}: no column {unknown[0]!r}; there are {', '.join(known)}")
        if not wanted or len(set(wanted)) < len(wanted):
            raise UserError(f"columns {wanted}: name at least one, and each once; there are {', '.join(known)}")
        return wanted

    def _as_units(self, rows: range | ndarray | Sequence[range | ndarray]) -> list[Unit]:
        if isinstance(rows, range) and len(rows) and rows.step == 1:
            _row_numbers(rows, self.sources.num_rows)
            return self._chunk_units(rows)
        if isinstance(rows, range | ndarray):
            numbers = np.asarray(_row_numbers(rows, self.sources.num_rows))
            return [numbers[at : at + UNIT_ROWS] for at in range(0, len(numbers), UNIT_ROWS)]
        if not len(rows):
            raise UserError("rows []: give at least one range or array of row numbers")
        return [_row_numbers(unit, self.sources.num_rows) for unit in rows]

    def _chunk_units(self, rows: range) -> list[Unit]:
        """Split a range at the starts of compressed chunks, so that none is decoded twice."""
        units: list[Unit] = []
        offset = 0
        for source, chunk in zip(self.sources.files, self.sources.chunk_rows, strict=True):
            size = chunk * math.ceil(UNIT_ROWS / chunk)
            stop = offset + source.rows
            spans = [range(max(at, rows.start), min(at + size, stop, rows.stop)) for at in range(offset, stop, size)]
            units += [span for span in spans if len(span)]
            offset = stop
        return units

    def get_name(self) -> str:
        """The name shown in Ray's dashboard and progress bars."""
        return "Spectra"

    @property
    def row_bytes(self) -> int:
        """Size of a row in memory, in bytes; text counts as 8 bytes."""
        wide = sum(name in (FLUX, ERROR) for name in self._columns)
        return 4 * wide * len(self._pixels) + 8 * (len(self._columns) - wide)

    def estimate_inmemory_data_size(self) -> int:
        """Size of all rows in memory, in bytes."""
        return self.row_bytes * sum(map(len, self._units))

    def num_tasks(self, cpus: int) -> int:
        """Number of tasks: few, as each has overhead, but with all CPUs busy to the end and bounded memory."""
        waves = math.ceil(self.estimate_inmemory_data_size() / (TASK_BYTES * cpus))
        return min(len(self._units), waves * cpus)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """Tasks of consecutive units: `parallelism` of them, or more to bound the memory of each."""
        tasks = []
        for first, last in itertools.pairwise(self._edges(min(len(self._units), max(parallelism, self.num_tasks(1))))):
            units = self._units[first:last]
            rows = sum(map(len, units))
            metadata = BlockMetadata(
                num_rows=rows, size_bytes=rows * self.row_bytes, input_files=self._files(units), exec_stats=None
            )
            read = functools.partial(read_units, units, self.sources, self._columns, self._pixels)
            tasks.append(ReadTask(read, metadata, self._schema(), per_task_row_limit))
        return tasks

    def _edges(self, count: int) -> list[int]:
        """Boundaries that split the units into tasks of about equal rows, with at least one unit each."""
        after, edges = np.cumsum([len(unit) for unit in self._units]), [0]
        for task in range(1, count):
            nearest = int(np.abs(after - after[-1] * task / count).argmin()) + 1
            edges.append(max(edges[-1] + 1, min(nearest, len(self._units) - count + task)))
        return [*edges, len(self._units)]

    def _files(self, units: Sequence[Unit]) -> tuple[str, ...]:
        ranges = [(min(unit[0], unit[-1]), max(unit[0], unit[-1]) + 1) for unit in units if isinstance(unit, range)]
        if len(ranges) < len(units):
            return tuple(source.path for source in self.sources.files)
        return tuple(sorted({str(path) for span in ranges for path, _, _ in self.sources.ranges(*span)}))

    def _schema(self) -> pa.Schema:
        tensor = pa.fixed_shape_tensor(pa.float32(), [len(self._pixels)])
        fields = [self.sources.schema.field(name) for name in self._columns]
        return pa.schema([field.with_type(tensor) if field.name in (FLUX, ERROR) else field for field in fields])


def _row_numbers(rows: range | ndarray, num_rows: int) -> Unit:
    """The rows of one task: a contiguous range unchanged, anything else as an array of row numbers.

    Raises:
        UserError: They are not row numbers, are empty, or are outside 0 to ``num_rows``.
    """
    numbers = np.asarray(rows[:: max(1, len(rows) - 1)] if isinstance(rows, range) else rows)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu" or not len(numbers):
        raise UserError(f"rows {_short(rows)}: give ranges, or arrays of whole numbers, that are not empty")
    if numbers.min() < 0 or numbers.max() >= num_rows:
        raise UserError(f"rows {_short(rows)}: give rows within 0 to {num_rows}")
    return rows if isinstance(rows, range) and rows.step == 1 else np.asarray(rows, dtype=np.int64)


def _short(rows: object) -> str:
    return " ".join(str(rows).split())[:100]
