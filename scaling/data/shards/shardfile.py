"""One shard: a Parquet file of spectra, how it is written, read, checked and summarised."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from jaxtyping import Float32, Int64, UInt64
from numpy import ndarray

from scaling.data.shards.manifest import Shard, published
from scaling.data.shards.statistics import TrainingStatistics
from scaling.data.spectra import ERROR, FLUX, ROW_ID
from scaling.errors import UserError

ROW_GROUP_ROWS = 512
"""A row group is what a reader decodes at once: 16 MiB at 4096 pixels, so that a prefix need not read a whole shard."""
FILLED_EDGES, CHECKSUM = b"filled_edges", b"checksum"
"""What a shard's footer says of its rows."""
HASHED_EVERY = 16
"""Spectra are told apart by flux and error in every 16th pixel. Flux alone would not do: noise-free spectra on a grid of
labels are often equal, and differ in brightness only, which the error shows."""


class Checksum:
    """A hash of a table's values, column by column; the same however the rows are cut, encoded or compressed.

    XXH3 (128 bits) finds every accident, at the speed of memory; it is no defence against a forger.
    """

    def __init__(self) -> None:
        self._columns: dict[str, Any] = {}

    def update(self, table: pa.Table) -> None:
        """Add rows."""
        for name in table.column_names:
            values = column_values(table, name)
            column = self._columns.setdefault(name, xxhash.xxh3_128(f"{values.dtype.str}{values.shape[1:]}".encode()))
            if values.dtype == object:
                column.update("".join(f"{value}\0" for value in values).encode())
            else:
                column.update(np.ascontiguousarray(values).data)

    def hexdigest(self) -> str:
        """The checksum of the rows added so far."""
        columns = "".join(f"{name} {column.hexdigest()}\n" for name, column in self._columns.items())
        return xxhash.xxh3_128(columns.encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardTask:
    """A shard to write.

    Attributes:
        file: Its path in the shard set.
        first_row: Its first row in the split's study order.
        rows: How many follow.
        segments: The rows of the sources that it holds, as (file, start, stop); none where the split is shuffled.
        snr_every: The SNR of every such row is reported; None outside the training split, which alone has statistics.
    """

    file: str
    first_row: int
    rows: int
    segments: tuple[tuple[Path, int, int], ...]
    snr_every: int | None


@dataclass(frozen=True, slots=True)
class ShardSummary:
    """What the manifest needs to know of a shard; ``hashes`` has one of each spectrum, which equal spectra share."""

    shard: Shard
    hashes: UInt64[ndarray, " row"]
    training: TrainingStatistics | None
    filled_edges: int


def column_values(table: pa.Table, name: str) -> ndarray:
    """A column as an array: (rows, pixels) float32 for flux and error, (rows,) for the rest."""
    chunks = table[name]
    column = chunks.chunk(0) if chunks.num_chunks == 1 else chunks.combine_chunks()
    if isinstance(column, pa.FixedShapeTensorArray):
        return column.to_numpy_ndarray()
    return column.to_numpy(zero_copy_only=False)


def number_columns(schema: pa.Schema) -> list[str]:
    """The parameter columns that are numbers."""
    return [field.name for field in schema if not (field.name in (ROW_ID, FLUX, ERROR) or field.type == pa.string())]


def row_groups(path: Path, groups: Iterable[int] | None = None, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The rows of a shard, a row group at a time.

    Args:
        path: The shard.
        groups: Which row groups, in this order; all by default.
        columns: Which columns; all by default.

    Raises:
        UserError: The file is missing or not a whole Parquet file.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            for group in range(file.num_row_groups) if groups is None else groups:
                yield file.read_row_group(group, columns, use_threads=False)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path}: this shard cannot be read ({reason}): remove it and run the same `scaling shard` command again"
        ) from error


def footer_checksum(path: Path) -> str | None:
    """The checksum that a shard's footer says its rows have; None where there is no whole shard. Reads the footer only."""
    try:
        metadata = pq.read_metadata(path).metadata or {}
    except (OSError, pa.ArrowException):
        return None
    return metadata.get(CHECKSUM, b"").decode() or None


def is_as_listed(dest: Path, shard: Shard) -> bool:
    """Whether a shard is there, whole, and by its footer the one that the manifest lists. Its pages are not read."""
    return footer_checksum(dest / shard.file) == shard.checksum


def spectra_table(
    row_ids: Int64[ndarray, " row"],
    flux: Float32[ndarray, "row pixel"],
    error: Float32[ndarray, "row pixel"],
    params: pa.Table,
    schema: pa.Schema,
) -> pa.Table:
    """Rows as a shard has them; nothing is copied."""
    columns = {ROW_ID: pa.array(row_ids), FLUX: _tensor_array(flux), ERROR: _tensor_array(error)}
    return pa.table({name: columns[name] if name in columns else params[name] for name in schema.names}, schema=schema)


def params_table(params: pd.DataFrame, schema: pa.Schema, path: Path) -> pa.Table:
    """The parameters of some rows of a file as a shard has them.

    Raises:
        UserError: A parameter is not of its column's kind.
    """
    fields = [field for field in schema if field.name not in (ROW_ID, FLUX, ERROR)]
    try:
        return pa.table([_param_array(params[field.name], field.type) for field in fields], schema=pa.schema(fields))
    except (TypeError, ValueError) as mistake:
        reason = str(mistake).splitlines()[0]
        raise UserError(f"{path}: parameter table: {reason}: give each column one kind of value") from mistake


def _tensor_array(values: Float32[ndarray, "row pixel"]) -> pa.ExtensionArray:
    """Flux or error as a column, not copied."""
    pixels = values.shape[1]
    storage = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), pixels)
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), [pixels]), storage)


def _param_array(column: pd.Series, kind: pa.DataType) -> pa.Array:
    """A parameter column; NaN stays NaN in numbers, as in the source, and only text has missing values."""
    if pa.types.is_string(kind):
        text = [value.decode() if isinstance(value, bytes) else value for value in column.astype(object)]
        return pa.array(text, kind, from_pandas=True)
    return pa.array(column.to_numpy().astype(kind.to_pandas_dtype()), kind, from_pandas=False)


class _Summariser:
    """Gathers a shard's summary from its row groups, whether they are being written or read again."""

    def __init__(self, task: ShardTask, schema: pa.Schema) -> None:
        self._task, self._numbers = task, number_columns(schema)
        self._checksum = Checksum()
        self._hashes: list[int] = []
        self._training: TrainingStatistics | None = None

    def add(self, table: pa.Table) -> None:
        self._checksum.update(table)
        flux, error, every = column_values(table, FLUX), column_values(table, ERROR), self._task.snr_every
        sampled_pixels = np.concatenate([flux[:, ::HASHED_EVERY], error[:, ::HASHED_EVERY]], axis=1)
        self._hashes += map(xxhash.xxh3_64_intdigest, sampled_pixels)
        if every is not None:
            sampled = column_values(table, ROW_ID) % every == 0
            columns = [column_values(table, name).astype(np.float64) for name in self._numbers]
            numbers = np.stack(columns, axis=1) if columns else np.empty((len(flux), 0))
            found = TrainingStatistics.of(flux, error, numbers, sampled)
            self._training = found if self._training is None else self._training + found

    def checksum(self) -> str:
        return self._checksum.hexdigest()

    def summary(self, filled_edges: int) -> ShardSummary:
        shard = Shard(file=self._task.file, rows=len(self._hashes), checksum=self.checksum())
        return ShardSummary(shard, np.array(self._hashes, dtype=np.uint64), self._training, filled_edges)


def read_summary(task: ShardTask, dest: Path, schema: pa.Schema) -> ShardSummary | None:
    """Read a shard that an earlier run left, all of it; None where it is not there, not whole, or altered."""
    path, summary = dest / task.file, _Summariser(task, schema)
    try:
        with pq.ParquetFile(path) as file:
            if file.metadata.num_rows != task.rows or not file.schema_arrow.equals(schema):
                return None
            footer = file.metadata.metadata
        for table in row_groups(path):
            summary.add(table)
    except (UserError, OSError, pa.ArrowException):
        return None
    if footer.get(CHECKSUM, b"").decode() != summary.checksum():
        return None
    return summary.summary(int(footer[FILLED_EDGES]))


def parquet_options(schema: pa.Schema) -> dict[str, Any]:
    """How shards are encoded.

    Byte-stream-split puts the floats' exponents side by side, which zstd then halves; dictionaries never pay on noise.
    """
    return {
        "compression": "zstd",
        "compression_level": 1,
        "use_dictionary": False,
        "write_page_checksum": True,
        "column_encoding": {f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in (FLUX, ERROR)},
        "write_statistics": [name for name in schema.names if name not in (FLUX, ERROR)],
    }


def write_shard(
    task: ShardTask,
    dest: Path,
    schema: pa.Schema,
    groups: Iterator[tuple[pa.Table, int]],
    expected: str | None = None,
) -> ShardSummary:
    """Write one shard under a temporary name, then rename, and summarise it.

    Args:
        task: The shard.
        dest: The shard set's folder.
        schema: The shard's columns.
        groups: Its row groups in order, each with the number of edge pixels that were filled; one is held at a time.
        expected: The checksum that the shard must have, where a manifest says so.

    Raises:
        UserError: A source row cannot be trained on, or the checksum is another.
    """
    summariser, filled_edges = _Summariser(task, schema), 0
    with published(dest / task.file) as temporary:
        with pq.ParquetWriter(temporary, schema, **parquet_options(schema)) as writer:
            for table, filled in groups:
                summariser.add(table)
                writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
                filled_edges += filled
            writer.add_key_value_metadata(
                {CHECKSUM: summariser.checksum().encode(), FILLED_EDGES: str(filled_edges).encode()}
            )
        if expected not in (None, summariser.checksum()):
            origin = ", ".join(str(path) for path, _, _ in task.segments) or "the training files"
            raise UserError(
                f"{dest / task.file}: {origin} no longer hold what this shard was made from: "
                "restore the original files, or convert into another folder"
            )
    return summariser.summary(filled_edges)
