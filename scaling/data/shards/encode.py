"""Shard encoding: the table of spectra, its Parquet settings, and the summary for the manifest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from jaxtyping import Float32, UInt64
from numpy import ndarray

from scaling.data.shards.manifest import SPLITS, Shard
from scaling.data.shards.shard import CHECKSUM, ROW_GROUP_ROWS, Checksum, column_values, row_groups
from scaling.data.shards.statistics import TrainingStatistics
from scaling.data.spectra import ERROR, FLUX, ROW_ID
from scaling.errors import UserError
from scaling.folder import Folder
from scaling.parquet import open_parquet

FILLED = "filled_edges"
"""Temporary column: number of edge pixels of a row whose NaN error was filled. The footer stores the sum."""
SNR_ROWS = 4096
"""Maximum number of training spectra for SNR statistics (27 µs each): the median's rank is exact to 0.8 %."""
HASHED_EVERY = 16
"""Spectra are hashed by flux and error in every 16th pixel. Flux alone is not enough: noise-free spectra on a grid of
labels are often equal and differ only in brightness, which the error shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedShard:
    """A shard that is to be written.

    Attributes:
        file: Its path in the shard set.
        start: Its first row in the concatenated study order of all splits.
        first_row: Its first row in the study order of its split.
        rows: Its number of rows.
        snr_every: The SNR of every n-th row is reported; None outside the training split, which alone has statistics.
    """

    file: str
    start: int
    first_row: int
    rows: int
    snr_every: int | None


def plan_shards(splits: Mapping[str, int], rows_per_shard: int) -> list[PlannedShard]:
    """Plan the shards of a set: a fixed number of rows each, fewer in the last of a split."""
    planned, start = [], 0
    for split in SPLITS:
        total = splits[split]
        snr_every = max(1, math.ceil(total / SNR_ROWS)) if split == "train" else None
        for index, first in enumerate(range(0, total, rows_per_shard)):
            rows = min(rows_per_shard, total - first)
            file = f"{split}/part-{index:05d}.parquet"
            planned.append(
                PlannedShard(file=file, start=start + first, first_row=first, rows=rows, snr_every=snr_every)
            )
        start += total
    return planned


@dataclass(frozen=True, slots=True)
class ShardSummary:
    """What the manifest needs to know about a shard; ``hashes`` has one hash per spectrum, equal for equal spectra."""

    shard: Shard
    hashes: UInt64[ndarray, " row"]
    training: TrainingStatistics | None
    filled_edges: int


def number_columns(schema: pa.Schema) -> list[str]:
    """The numeric parameter columns."""
    return [field.name for field in schema if not (field.name in (ROW_ID, FLUX, ERROR) or field.type == pa.string())]


def params_table(params: pd.DataFrame, schema: pa.Schema, path: object) -> pa.Table:
    """Convert parameter rows of a file to the shard schema.

    Raises:
        UserError: A parameter does not have its column's type.
    """
    fields = [field for field in schema if field.name not in (ROW_ID, FLUX, ERROR)]
    try:
        return pa.table([_param_array(params[field.name], field.type) for field in fields], schema=pa.schema(fields))
    except (TypeError, ValueError) as mistake:
        reason = str(mistake).splitlines()[0]
        raise UserError(f"{path}: parameter table: {reason}: give each column one kind of value") from mistake


def tensor_array(values: Float32[ndarray, "row pixel"]) -> pa.ExtensionArray:
    """Flux or error as an Arrow column, without a copy."""
    pixels = values.shape[1]
    storage = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), pixels)
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), [pixels]), storage)


def converted(column: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray | pa.Array:
    """Convert a column to the schema's type; not copied if it already has it.

    Raises:
        UserError: It cannot be converted.
    """
    gaps = column.null_count > 0 and not pa.types.is_string(field.type)
    if column.type == field.type and not gaps:
        return column
    try:
        if gaps:
            raise ValueError("a value is missing; only text may be")
        if field.name in (FLUX, ERROR):
            return tensor_array(_spectra(column, field.type.shape[0]))
        if field.name == ROW_ID and not pa.types.is_integer(column.type):
            raise TypeError("no whole numbers")
        return column.cast(field.type)
    except (TypeError, ValueError, pa.ArrowException) as error:
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise UserError(
            f"column {field.name!r} of the dataset is {column.type}: expected {field.type} ({reason})"
        ) from error


def _spectra(column: pa.ChunkedArray, pixels: int) -> Float32[ndarray, "row pixel"]:
    """Flux or error as an array, from any kind of Arrow tensors or lists."""
    parts = [chunk.to_numpy(zero_copy_only=False) for chunk in _flat(column).chunks]
    values = np.concatenate([np.stack(part) if part.dtype == object else part for part in parts])
    if values.dtype.kind not in "iuf" or values.shape != (len(column), pixels):
        raise ValueError(f"rows of {values.dtype} of shape {values.shape[1:]}")
    return values.astype(np.float32)


def _flat(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Convert Arrow's own tensors to lists."""
    return column.cast(column.type.storage_type) if isinstance(column.type, pa.FixedShapeTensorType) else column


def _param_array(column: pd.Series, kind: pa.DataType) -> pa.Array:
    """Convert a parameter column; NaN stays NaN in numbers, as in the source, and only text has nulls."""
    if pa.types.is_string(kind):
        text = [value.decode() if isinstance(value, bytes) else value for value in column.astype(object)]
        return pa.array(text, kind, from_pandas=True)
    return pa.array(column.to_numpy().astype(kind.to_pandas_dtype()), kind, from_pandas=False)


class Summariser:
    """Accumulates a shard's summary from its row groups, while they are written or read back."""

    def __init__(self, planned: PlannedShard, schema: pa.Schema) -> None:
        self._planned, self._numbers = planned, number_columns(schema)
        self._checksum = Checksum()
        self._hashes: list[int] = []
        self._training: TrainingStatistics | None = None

    def add(self, table: pa.Table) -> None:
        """Add a row group."""
        self._checksum.update(table)
        flux, error, every = column_values(table, FLUX), column_values(table, ERROR), self._planned.snr_every
        sampled_pixels = np.concatenate([flux[:, ::HASHED_EVERY], error[:, ::HASHED_EVERY]], axis=1)
        self._hashes += map(xxhash.xxh3_64_intdigest, sampled_pixels)
        if every is not None:
            sampled = column_values(table, ROW_ID) % every == 0
            columns = [column_values(table, name).astype(np.float64) for name in self._numbers]
            numbers = np.stack(columns, axis=1) if columns else np.empty((len(flux), 0))
            found = TrainingStatistics.of(flux, error, numbers, sampled)
            self._training = found if self._training is None else self._training + found

    def summary(self, filled_edges: int) -> ShardSummary:
        """The summary of the row groups added so far."""
        shard = Shard(file=self._planned.file, rows=len(self._hashes), checksum=self._checksum.hexdigest())
        return ShardSummary(shard, np.array(self._hashes, dtype=np.uint64), self._training, filled_edges)


def read_summary(planned: PlannedShard, folder: Folder, schema: pa.Schema) -> ShardSummary | None:
    """Read back every page of a shard from an earlier run; None if it is missing, incomplete or altered."""
    summariser = Summariser(planned, schema)
    try:
        if folder.size(planned.file) is None:
            return None
        footer = open_parquet(folder.open(planned.file))
        if footer.metadata.num_rows != planned.rows or not footer.schema_arrow.equals(schema):
            return None
        for table in row_groups(folder, planned.file):
            summariser.add(table)
        known = footer.metadata.metadata
        summary = summariser.summary(int(known[FILLED.encode()]))
        return summary if known[CHECKSUM].decode() == summary.shard.checksum else None
    except (UserError, OSError, KeyError, ValueError, pa.ArrowException):
        return None


def parquet_options(schema: pa.Schema) -> dict[str, Any]:
    """Parquet settings of shards.

    Byte-stream-split groups the floats' exponents, which zstd then halves in size; dictionaries never pay off on noise.
    """
    return {
        "compression": "zstd",
        "compression_level": 1,
        "use_dictionary": False,
        "write_page_checksum": True,
        "column_encoding": {f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in (FLUX, ERROR)},
        "write_statistics": [name for name in schema.names if name not in (FLUX, ERROR)],
    }


class ShardEncoder:
    """Encodes the rows of one shard into a stream, one row group at a time, and summarises them; a context manager."""

    def __init__(self, planned: PlannedShard, schema: pa.Schema, stream: pa.NativeFile) -> None:
        self.planned, self.rows = planned, 0
        self._summariser, self._filled = Summariser(planned, schema), 0
        self._writer = pq.ParquetWriter(stream, schema, **parquet_options(schema))

    def __enter__(self) -> ShardEncoder:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._writer.close()
        finally:
            self._writer.is_open = False  # otherwise its destructor writes into the closed stream

    def add(self, table: pa.Table, filled_edges: int) -> None:
        """Add a row group: 512 rows, fewer at the end of the shard."""
        self._summariser.add(table)
        self._writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
        self.rows += len(table)
        self._filled += filled_edges

    def finish(self) -> ShardSummary:
        """Finish the file and return its summary, part of which is repeated in the footer."""
        summary = self._summariser.summary(self._filled)
        footer = {CHECKSUM: summary.shard.checksum.encode(), FILLED.encode(): str(self._filled).encode()}
        self._writer.add_key_value_metadata(footer)
        return summary
