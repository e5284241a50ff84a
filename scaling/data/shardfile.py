"""One shard: a Parquet file of spectra, how it is written, read, checked and summarised."""

import functools
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float
from numpy import ndarray

from scaling.data.hdf5 import check_rows, open_spectra, spectrum_snr
from scaling.data.manifest import Shard, temporary_name
from scaling.data.statistics import PixelMoments
from scaling.errors import UserError

ROW_ID, FLUX, ERROR = "row_id", "flux", "error"
ROW_GROUP_ROWS = 512
"""A row group is what a reader decodes at once: 16 MiB at 4096 pixels, so that a prefix need not read a whole shard."""
FILLED_EDGES = b"filled_edges"


class Checksum:
    """A SHA-256 of a table's values, column by column; the same however the rows are cut, encoded or compressed."""

    def __init__(self) -> None:
        self._columns: dict[str, Any] = {}

    def update(self, table: pa.Table) -> None:
        """Add rows."""
        for name in table.column_names:
            values = column_values(table, name)
            column = self._columns.setdefault(name, hashlib.sha256(f"{values.dtype.str}{values.shape[1:]}".encode()))
            if values.dtype == object:
                column.update("".join(f"{value}\0" for value in values).encode())
            else:
                column.update(np.ascontiguousarray(values).data)

    def hexdigest(self) -> str:
        """The checksum of the rows added so far."""
        columns = "".join(f"{name} {column.hexdigest()}\n" for name, column in self._columns.items())
        return hashlib.sha256(columns.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class ShardTask:
    """A shard to write: its file, its first row in the split, and the rows of the sources that it holds."""

    file: str
    first_row: int
    segments: tuple[tuple[Path, int, int], ...]


@dataclass(frozen=True, slots=True)
class ShardSummary:
    """What the manifest needs to know of a shard."""

    shard: Shard
    snr: Float[ndarray, " row"]
    moments: PixelMoments
    filled_edges: int


def column_values(table: pa.Table, name: str) -> ndarray:
    """A column as an array: (rows, pixels) float32 for flux and error, (rows,) for the rest."""
    column = table[name].combine_chunks()
    if isinstance(column, pa.FixedShapeTensorArray):
        return column.to_numpy_ndarray()
    return column.to_numpy(zero_copy_only=False)


def row_groups(path: Path) -> Iterator[pa.Table]:
    """The rows of a shard, a row group at a time.

    Raises:
        UserError: The file is missing or not a whole Parquet file.
    """
    try:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                yield file.read_row_group(group)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path}: this shard cannot be read ({reason}): remove it and manifest.json, and run `scaling shard` again"
        ) from error


def _tensor_array(values: Float[ndarray, "row pixel"]) -> pa.ExtensionArray:
    pixels = values.shape[1]
    storage = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), pixels)
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), [pixels]), storage)


def _param_array(column: pd.Series, kind: pa.DataType) -> pa.Array:
    """A parameter column; NaN stays NaN in numbers, as in the source, and only text has missing values."""
    if pa.types.is_string(kind):
        return pa.array(column.astype(object), kind, from_pandas=True)
    return pa.array(column.to_numpy().astype(kind.to_pandas_dtype()), kind, from_pandas=False)


def _read_table(task: ShardTask, schema: pa.Schema) -> pa.Table:
    """The rows of a shard, from their sources.

    Raises:
        UserError: A row cannot be trained on.
    """
    fluxes, errors, frames, filled = [], [], [], 0
    for path, start, stop in task.segments:
        with open_spectra(path) as spectra:
            flux, error = spectra.read(start, stop)
            check_rows(flux, error, path, start)
            frames.append(spectra.read_params(start, stop))
            filled += spectra.filled_edges
        fluxes.append(flux)
        errors.append(error)
    params = pd.concat(frames, ignore_index=True)
    columns = {
        ROW_ID: pa.array(task.first_row + np.arange(len(params))),
        FLUX: _tensor_array(np.concatenate(fluxes)),
        ERROR: _tensor_array(np.concatenate(errors)),
    }
    columns |= {
        field.name: _param_array(params[field.name], field.type) for field in schema if field.name not in columns
    }
    return pa.table(columns, schema=schema).replace_schema_metadata({FILLED_EDGES: str(filled)})


def _write_table(table: pa.Table, path: Path) -> None:
    """Write a shard under a temporary name, then rename.

    Byte-stream-split puts the floats' exponents side by side, which zstd then halves; dictionaries never pay on noise.
    """
    spectra = {f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in (FLUX, ERROR)}
    temporary = temporary_name(path)
    try:
        pq.write_table(
            table,
            temporary,
            row_group_size=ROW_GROUP_ROWS,
            compression="zstd",
            compression_level=1,
            use_dictionary=False,
            column_encoding=spectra,
            write_statistics=[name for name in table.column_names if name not in (FLUX, ERROR)],
        )
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _existing_table(path: Path, schema: pa.Schema, rows: int) -> pa.Table | None:
    """A shard that an earlier run left, if it is whole."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException):
        return None
    return table if table.num_rows == rows and table.schema.equals(schema) else None


def write_shard(task: ShardTask, dest: Path, schema: pa.Schema) -> ShardSummary:
    """Write one shard, or keep the whole one that is there, and summarise it.

    Args:
        task: The shard.
        dest: The shard set's folder.
        schema: The shard's columns.

    Raises:
        UserError: A source row cannot be trained on.
    """
    path = dest / task.file
    rows = sum(stop - start for _, start, stop in task.segments)
    table = _existing_table(path, schema, rows)
    if table is None:
        table = _read_table(task, schema)
        _write_table(table, path)
    checksum = Checksum()
    checksum.update(table)
    flux, error = column_values(table, FLUX), column_values(table, ERROR)
    pieces = [slice(start, start + ROW_GROUP_ROWS) for start in range(0, rows, ROW_GROUP_ROWS)]
    return ShardSummary(
        shard=Shard(file=task.file, rows=rows, checksum=checksum.hexdigest()),
        snr=spectrum_snr(flux, error),
        moments=functools.reduce(PixelMoments.__add__, (PixelMoments.of(flux[rows], error[rows]) for rows in pieces)),
        filled_edges=int(table.schema.metadata[FILLED_EDGES]),
    )
