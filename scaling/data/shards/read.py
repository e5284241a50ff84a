"""Rows of source files as Arrow blocks, without Ray; used by `SpectraDatasource` and by verification."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Int64
from numpy import ndarray

from scaling.data.hdf5.reader import SpectraFile, open_spectra
from scaling.data.shards.encode import params_table, tensor_array
from scaling.data.shards.shard import ROW_GROUP_ROWS
from scaling.data.shards.sources import Sources
from scaling.data.spectra import ERROR, FLUX, ROW_ID
from scaling.errors import UserError

Unit = range | Int64[ndarray, " _"]
"""Rows read by one task: a range, or row numbers in any order."""


def read_units(units: Sequence[Unit], sources: Sources, columns: list[str], pixels: range) -> Iterator[pa.Table]:
    """Yield rows of some files as blocks of at most one row group. A file stays open between units."""
    with _OneOpenFile() as files:
        for unit in units:
            if isinstance(unit, range):
                yield from _read_range(files, unit, sources, columns, pixels)
            else:
                yield from _read_rows(files, unit, sources, columns, pixels)


class _OneOpenFile:
    """Keeps the most recently read file open."""

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
            if not path.exists():  # it existed when the work was planned
                raise UserError(
                    f"{path}: no such file on {socket.gethostname()}: sources must lie where every node sees them, and stay"
                )
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
    """Yield rows in any order; each file is read in disk order and the rows are then rearranged."""
    flux, error = (np.empty((len(rows), len(sources.wave)), np.float32) for _ in range(2))
    params, order = [], []
    for path, places, within in sources.places(rows):
        spectra = files(path)
        if within.max() >= spectra.num_rows:
            raise UserError(
                f"{path}: was changed while it was read, it has {spectra.num_rows} spectra now: run it again"
            )
        if {FLUX, ERROR} & set(columns):
            flux[places], error[places] = spectra.read_rows(within, fill=False)
        params.append(_params(spectra, within, sources, columns))
        order.append(places)
    table = pa.concat_tables(params).take(np.argsort(np.concatenate(order)))
    for at in range(0, len(rows), ROW_GROUP_ROWS):
        some = slice(at, at + ROW_GROUP_ROWS)
        yield _table(rows[some], flux[some], error[some], table.slice(at, ROW_GROUP_ROWS), columns, pixels)


def _params(spectra: SpectraFile, rows: Int64[ndarray, " row"], sources: Sources, columns: list[str]) -> pa.Table:
    """The requested parameter columns of some rows; without columns, an empty table with the same number of rows."""
    wanted = [field for field in sources.schema if field.name in columns and field.name not in (ROW_ID, FLUX, ERROR)]
    if not wanted:
        return pa.table({"": pa.nulls(len(rows))}).select([])
    in_turn = (np.diff(rows) == 1).all()
    frame = spectra.read_params(int(rows[0]), int(rows[-1]) + 1) if in_turn else spectra.params_rows(rows)
    return params_table(frame, pa.schema(wanted), spectra.path)


def _table(
    row_ids: Int64[ndarray, " row"],
    flux: ndarray | None,
    error: ndarray | None,
    params: pa.Table,
    columns: list[str],
    pixels: range,
) -> pa.Table:
    """Build a block; flux and error are not copied unless pixels are dropped."""

    def column(name: str) -> pa.Array | pa.ChunkedArray:
        if name == ROW_ID:
            return pa.array(row_ids)
        values = {FLUX: flux, ERROR: error}.get(name)
        if values is None:
            return params[name]
        return tensor_array(np.ascontiguousarray(values[:, pixels.start : pixels.stop : pixels.step]))

    return pa.table({name: column(name) for name in columns})
