"""`SpectraDatasource`: HDF5 files of spectra for Ray Data."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Int64
from numpy import ndarray
from ray.data import Datasource
from ray.data.block import BlockMetadata
from ray.data.context import DataContext
from ray.data.datasource import ReadTask

from scaling.data.hdf5.reader import SpectraFile, open_spectra
from scaling.data.shards.encode import params_table, tensor_array
from scaling.data.shards.shard import ROW_GROUP_ROWS
from scaling.data.shards.sources import Sources, inspect_sources
from scaling.data.spectra import ERROR, FLUX, ROW_ID
from scaling.errors import UserError

UNIT_ROWS = 4096
"""Rows that one task reads at least, where the caller names no units: the chunk of the simulator's large files."""
TASK_BYTES = 2**29
"""What a task's rows may take: Ray Data holds them all until the task ends, if it writes."""

Unit = range | Int64[ndarray, " row"]
"""Rows that are read by one task: a range of them, or row numbers in any order."""


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
        self._units = self._chunk_units() if rows is None else [rows] if isinstance(rows, range) else list(rows)
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

    def num_tasks(self, cpus: float) -> int:
        """Tasks for so many processors: long ones, as each costs scheduling; all busy to the end; each bounded in memory."""
        most = max(1, TASK_BYTES // max(1, self.row_bytes * max(map(len, self._units))))
        waves = math.ceil(len(self._units) / (most * max(1, int(cpus))))
        return min(len(self._units), waves * max(1, int(cpus)))

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """Tasks of consecutive units, as many as asked for or, to bound their memory, more."""
        count = min(len(self._units), max(parallelism, self.num_tasks(1)))
        edges = [len(self._units) * at // count for at in range(count + 1)]
        tasks = []
        for first, last in zip(edges, edges[1:], strict=False):
            units = self._units[first:last]
            rows = sum(map(len, units))
            metadata = BlockMetadata(
                num_rows=rows, size_bytes=rows * self.row_bytes, input_files=self._files(units), exec_stats=None
            )
            read = functools.partial(read_units, units, self.sources, self._columns, self._pixels)
            tasks.append(ReadTask(read, metadata, self._schema(), per_task_row_limit))
        return tasks

    def _files(self, units: list[Unit]) -> list[str]:
        ranges = [(min(unit[0], unit[-1]), max(unit[0], unit[-1]) + 1) for unit in units if isinstance(unit, range)]
        if len(ranges) < len(units):
            return [source.path for source in self.sources.files]
        return sorted({str(path) for span in ranges for path, _, _ in self.sources.ranges(*span)})

    def _schema(self) -> pa.Schema:
        tensor = pa.fixed_shape_tensor(pa.float32(), [len(self._pixels)])
        fields = [self.sources.schema.field(name) for name in self._columns]
        return pa.schema([field.with_type(tensor) if field.name in (FLUX, ERROR) else field for field in fields])


def read_units(units: list[Unit], sources: Sources, columns: list[str], pixels: range) -> Iterator[pa.Table]:
    """Rows of some files as blocks of a row group at most. A file stays open from unit to unit."""
    with _OneOpenFile() as files:
        for unit in units:
            if isinstance(unit, range):
                yield from _read_range(files, unit, sources, columns, pixels)
            else:
                yield from _read_rows(files, unit, sources, columns, pixels)


class _OneOpenFile:
    """The file that was read last, open."""

    def __init__(self) -> None:
        self._file: SpectraFile | None = None

    def __enter__(self) -> _OneOpenFile:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.__exit__(None, None, None)

    def __call__(self, path: Path) -> SpectraFile:
        if self._file is None or self._file.path != path:
            self.__exit__()
            self._file = open_spectra(path)
        return self._file


def _read_range(
    files: _OneOpenFile, rows: range, sources: Sources, columns: list[str], pixels: range
) -> Iterator[pa.Table]:
    offset = rows.start
    for path, start, stop in sources.ranges(rows.start, rows.stop):
        spectra = files(path)
        params = _params(spectra, np.arange(start, stop), sources, columns)
        if not {FLUX, ERROR} & set(columns):
            yield _table(offset + np.arange(stop - start), None, None, params, columns, pixels)
        else:
            for first, flux, error in spectra.blocks(start, stop, ROW_GROUP_ROWS, fill=False):
                at = first - start
                some = params.slice(at, len(flux))
                yield _table(offset + at + np.arange(len(flux)), flux, error, some, columns, pixels)
        offset += stop - start


def _read_rows(
    files: _OneOpenFile, rows: Int64[ndarray, " row"], sources: Sources, columns: list[str], pixels: range
) -> Iterator[pa.Table]:
    """Rows in any order: each file's in the order of the disk, then put in place."""
    flux, error = (np.empty((len(rows), len(sources.wave)), np.float32) for _ in range(2))
    params, order = [], []
    for path, places, within in sources.places(rows):
        spectra = files(path)
        if {FLUX, ERROR} & set(columns):
            flux[places], error[places] = spectra.read_rows(within, fill=False)
        params.append(_params(spectra, within, sources, columns))
        order.append(places)
    table = pa.concat_tables(params).take(np.argsort(np.concatenate(order)))
    for at in range(0, len(rows), ROW_GROUP_ROWS):
        some = slice(at, at + ROW_GROUP_ROWS)
        yield _table(rows[some], flux[some], error[some], table.slice(at, ROW_GROUP_ROWS), columns, pixels)


def _params(spectra: SpectraFile, rows: Int64[ndarray, " row"], sources: Sources, columns: list[str]) -> pa.Table:
    """The parameter columns asked for, of some rows of a file; a table of no columns but as many rows where none is."""
    wanted = [field for field in sources.schema if field.name in columns and field.name not in (ROW_ID, FLUX, ERROR)]
    if not wanted:
        return pa.table({"": pa.nulls(len(rows))}).select([])
    low, high = int(rows.min()), int(rows.max()) + 1
    frame = spectra.read_params(low, high)
    frame = frame if len(frame) == len(rows) and (np.diff(rows) == 1).all() else frame.iloc[rows - low]
    return params_table(frame, pa.schema(wanted), spectra.path)


def _table(
    row_ids: Int64[ndarray, " row"],
    flux: ndarray | None,
    error: ndarray | None,
    params: pa.Table,
    columns: list[str],
    pixels: range,
) -> pa.Table:
    """A block; flux and error are not copied unless pixels are left out."""

    def column(name: str) -> pa.Array | pa.ChunkedArray:
        if name == ROW_ID:
            return pa.array(row_ids)
        values = {FLUX: flux, ERROR: error}.get(name)
        if values is None:
            return params[name]
        return tensor_array(np.ascontiguousarray(values[:, pixels.start : pixels.stop : pixels.step]))

    return pa.table({name: column(name) for name in columns})
