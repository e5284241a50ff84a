"""One shard: a Parquet file of spectra, and how it is read and verified."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy import ndarray

from scaling.data.shards.manifest import CONVERT_AGAIN, Manifest, Shard
from scaling.data.spectra import ERROR, FLUX, ROW_ID
from scaling.errors import UserError
from scaling.folder import Folder
from scaling.parquet import open_parquet
from scaling.retry import retrying

ROW_GROUP_ROWS = 512
"""Rows decoded at once: 16 MiB at 4096 pixels, so that a prefix need not read a whole shard."""
CHECKSUM = b"checksum"
"""Key of the row checksum in a shard's footer, beside the filled edges."""


class Checksum:
    """A hash of a table's values, column by column, independent of chunking, encoding and compression.

    XXH3 (128 bits) detects any accidental change at memory speed; it is no protection against forgery.
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


def column_values(table: pa.Table, name: str) -> ndarray:
    """A column as an array: (rows, pixels) float32 for flux and error, (rows,) otherwise."""
    chunks = table[name]
    column = chunks.chunk(0) if chunks.num_chunks == 1 else chunks.combine_chunks()
    if isinstance(column, pa.FixedShapeTensorArray):
        return column.to_numpy_ndarray()
    return column.to_numpy(zero_copy_only=False)


def row_groups(folder: Folder, file: str, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Yield the rows of a shard, one row group at a time; an object store is read at once, whole or by column.

    Args:
        folder: The shard set.
        file: The shard.
        columns: Columns to read; all by default.

    Raises:
        UserError: The file is missing or not a complete Parquet file.
    """
    try:
        if folder.size(file) is None:
            raise FileNotFoundError("no such file")
        if folder.local is None:
            yield from retrying(lambda: _remote_groups(folder, file, columns))
            return
        with _parquet(folder.open(file)) as parquet:
            for group in range(parquet.num_row_groups):
                yield parquet.read_row_group(group, columns, use_threads=False)
    except (OSError, pa.ArrowException) as error:
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise UserError(
            f"{folder.locate(file)}: this shard cannot be read ({reason}): run the same `scaling shard` command again"
        ) from error


def leading_rows(manifest: Manifest, split: str, count: int, columns: list[str] | None) -> Iterator[pa.Table]:
    """Yield the first `count` rows of a split, one row group at a time; the last group is truncated.

    Raises:
        UserError: A shard cannot be read.
    """
    left = count
    for shard in manifest.leading_shards(split, count):
        for table in row_groups(manifest.folder, shard.file, columns=columns):
            yield table.slice(0, left)
            left -= min(left, len(table))
            if not left:
                return


def _parquet(source: pa.NativeFile, pre_buffer: bool = False) -> pq.ParquetFile:
    return open_parquet(source, page_checksum_verification=True, pre_buffer=pre_buffer)


def _remote_groups(folder: Folder, file: str, columns: list[str] | None) -> list[pa.Table]:
    """Read all row groups with few requests: the whole object if all columns are wanted, otherwise byte ranges."""
    source = pa.BufferReader(folder.read(file)) if columns is None else folder.open(file)
    with _parquet(source, pre_buffer=columns is not None) as parquet:
        return [parquet.read_row_group(group, columns) for group in range(parquet.num_row_groups)]


def shard_blocks(manifest: Manifest, split: str, index: int) -> Iterator[pa.Table]:
    """Yield the rows of a shard with all columns, one row group at a time, and verify them against the manifest.

    The checksum is verified only after the last block: do not rely on any block before the iteration ends.

    Raises:
        UserError: The file cannot be read, or is not the shard in the manifest.
    """
    shard, checksum, rows = manifest.shards(split)[index], Checksum(), 0
    first = sum(earlier.rows for earlier in manifest.shards(split)[:index])
    problem = ""
    for table in row_groups(manifest.folder, shard.file):
        problem = _column_problem(table, manifest.pixels)
        if problem:
            break
        if not np.array_equal(column_values(table, ROW_ID), first + rows + np.arange(len(table))):
            problem = f"row_id is not {first + rows} to {first + rows + len(table) - 1}"
            break
        checksum.update(table)
        yield table
        rows += len(table)
    if not problem and rows != shard.rows:
        problem = f"it has {rows} rows, not {shard.rows}"
    if problem or checksum.hexdigest() != shard.checksum:
        problem = problem or "it differs from the manifest's checksum"
        raise UserError(
            f"{manifest.folder.locate(shard.file)}: not the shard in the manifest, {problem}: {CONVERT_AGAIN}"
        )


def _column_problem(table: pa.Table, pixels: int) -> str:
    """The reason why a table's columns are not those of spectra; empty if they are."""
    for name in (ROW_ID, FLUX, ERROR):
        kind = pa.int64() if name == ROW_ID else pa.fixed_shape_tensor(pa.float32(), [pixels])
        if name not in table.column_names or table.schema.field(name).type != kind:
            return f"its column {name} is missing or not {kind}"
    return ""


def is_as_listed(folder: Folder, shard: Shard) -> bool:
    """Whether a shard exists, is complete, and by its footer matches the manifest. Its pages are not read."""
    try:
        if folder.size(shard.file) is None:
            return False
        footer = pq.read_metadata(folder.open(shard.file))
    except (OSError, pa.ArrowException):
        return False
    return footer.num_rows == shard.rows and (footer.metadata or {}).get(CHECKSUM, b"").decode() == shard.checksum
