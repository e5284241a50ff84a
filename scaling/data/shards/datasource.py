"""`SpectraDatasource`: HDF5 files of spectra for Ray Data."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
from ray.data import Datasource
from ray.data.block import BlockMetadata
from ray.data.context import DataContext
from ray.data.datasource import ReadTask

from scaling.data.shards.read import Unit, read_units
from scaling.data.shards.sources import inspect_sources
from scaling.data.spectra import ERROR, FLUX
from scaling.errors import UserError

UNIT_ROWS = 4096
"""Rows that one task reads at least, where the caller names no units: the chunk of the simulator's large files."""
TASK_BYTES = 2**29
"""What a task's rows may take: Ray Data holds them all until the task ends, if it writes."""


class SpectraDatasource(Datasource):
    """Spectra in HDF5 files of the PFS/BOSZ layout, as a Ray dataset.

    Each row has ``row_id``, its number in the files taken one after the other; ``flux`` and ``error``, (pixels,) float32, the
    file's values rounded once; and every column of the parameter table. Files lie on a file system that every node sees.

    The distribution of SNR over a million spectra, for example:

        dataset = ray.data.read_datasource(SpectraDatasource(paths, columns=["flux", "error"]))
        edges = np.linspace(0, 30, 61)
        count = lambda batch: {"count": [np.histogram(spectrum_snr(batch["flux"], batch["error"]), edges)[0]]}
        blocks = dataset.map_batches(count, batch_size=None).take_all()
        histogram = np.sum([block["count"] for block in blocks], axis=0)

    Args:
        paths: The files. They must have one wavelength grid and the same parameter columns.
        columns: Which columns to read; all by default. Flux and error are read where one of them is asked for.
        pixels: Which pixels to keep; all by default.
        rows: Which rows, in the order wanted: a range, or several units (ranges, or arrays of row numbers), each of which is
            read by one task. All by default.

    Raises:
        UserError: A file cannot be used, two do not go together, or there is no such column, pixel or row.
    """

    def __init__(
        self,
        paths: Iterable[Path | str],
        *,
        columns: Sequence[str] | None = None,
        pixels: range | None = None,
        rows: range | Sequence[Unit] | None = None,
    ) -> None:
        super().__init__()
        self.sources = inspect_sources(Path(path) for path in paths)
        self._pixels = pixels or range(len(self.sources.wave))
        if not 0 <= self._pixels.start < self._pixels.stop <= len(self.sources.wave):
            raise UserError(f"pixels {self._pixels}: give a range within 0 to {len(self.sources.wave)}")
        known = self.sources.schema.names
        if unknown := [name for name in columns or () if name not in known]:
            raise UserError(f"{self.sources.files[0].path}: no column {unknown[0]!r}; there are {', '.join(known)}")
        self._columns = list(columns or known)
        self._units: list[Unit] = (
            self._chunk_units() if rows is None else [rows] if isinstance(rows, range) else list(rows)
        )
        for unit in self._units:
            if not len(unit) or min(unit[0], unit[-1]) < 0 or max(unit[0], unit[-1]) >= self.sources.num_rows:
                raise UserError(f"rows {unit}: give rows within 0 to {self.sources.num_rows}")

    def _chunk_units(self) -> list[Unit]:
        """Ranges that begin where a chunk of the file does, so that no byte is read twice."""
        units: list[Unit] = []
        offset = 0
        for source, chunk in zip(self.sources.files, self.sources.chunk_rows, strict=True):
            rows = chunk * math.ceil(UNIT_ROWS / chunk)
            units += [range(offset + at, offset + min(at + rows, source.rows)) for at in range(0, source.rows, rows)]
            offset += source.rows
        return units

    def get_name(self) -> str:
        """The name on Ray's pages and progress bars."""
        return "Spectra"

    @property
    def row_bytes(self) -> int:
        """What a row takes in memory; text counts as 8 bytes."""
        wide = sum(name in (FLUX, ERROR) for name in self._columns)
        return 4 * wide * len(self._pixels) + 8 * (len(self._columns) - wide)

    def estimate_inmemory_data_size(self) -> int:
        """The bytes of all rows in memory."""
        return self.row_bytes * sum(map(len, self._units))

    def num_tasks(self, cpus: int) -> int:
        """Tasks for so many processors: long ones, as each costs scheduling; all busy to the end; each bounded in memory."""
        most = max(1, TASK_BYTES // max(1, self.row_bytes * max(map(len, self._units))))
        waves = math.ceil(len(self._units) / (most * cpus))
        return min(len(self._units), waves * cpus)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """Tasks of consecutive units, as many as asked for or, to bound their memory, more."""
        count = min(len(self._units), max(parallelism, self.num_tasks(1)))
        edges = [len(self._units) * at // count for at in range(count + 1)]
        tasks = []
        for first, last in itertools.pairwise(edges):
            units = self._units[first:last]
            rows = sum(map(len, units))
            metadata = BlockMetadata(
                num_rows=rows, size_bytes=rows * self.row_bytes, input_files=self._files(units), exec_stats=None
            )
            read = functools.partial(read_units, units, self.sources, self._columns, self._pixels)
            tasks.append(ReadTask(read, metadata, self._schema(), per_task_row_limit))
        return tasks

    def _files(self, units: Sequence[Unit]) -> tuple[str, ...]:
        ranges = [(min(unit[0], unit[-1]), max(unit[0], unit[-1]) + 1) for unit in units if isinstance(unit, range)]
        if len(ranges) < len(units):
            return tuple(source.path for source in self.sources.files)
        return tuple(sorted({str(path) for span in ranges for path, _, _ in self.sources.ranges(*span)}))

    def _schema(self) -> pa.Schema:
        tensor = pa.fixed_shape_tensor(pa.float32(), [len(self._pixels)])
        fields = [self.sources.schema.field(name) for name in self._columns]
        return pa.schema([field.with_type(tensor) if field.name in (FLUX, ERROR) else field for field in fields])
