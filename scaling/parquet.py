"""Parquet files from untrusted sources, read as plain values so that they run no code.

Needs neither Ray nor torch, so that `analysis` can use it too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def open_parquet(source: Path | bytes | pa.NativeFile, **options: Any) -> pq.ParquetFile:
    """Open a Parquet file, or its content; ``options`` are those of `pyarrow.parquet.ParquetFile`.

    A column may name an extension type that a library in this process defines in Python, and Arrow lets that library construct
    the values: Ray Data's `ray.data.arrow_pickled_object` unpickles them. Arrow's own types run no code.

    Raises:
        pa.ArrowInvalid: The file has such a column.
    """
    try:
        opened = pq.ParquetFile(pa.BufferReader(source) if isinstance(source, bytes) else source, **options)
        schema = opened.schema_arrow
    except pa.ArrowException:
        raise
    except ValueError as error:  # the library cannot construct the type from the file's metadata
        raise pa.ArrowInvalid(f"a column of a type that is not Arrow's own: {error}") from error
    for column in schema:
        if odd := next((kind for kind in _kinds(column.type) if isinstance(kind, pa.ExtensionType)), None):
            raise pa.ArrowInvalid(f"column {column.name} is {odd.extension_name}, which is not a type of Arrow's own")
    return opened


def read_parquet(source: Path | bytes, columns: list[str] | None = None) -> pa.Table:
    """Read a whole Parquet file, or its content, in this thread alone; see `open_parquet`.

    `pyarrow.parquet.read_table` leaves the end of its work to its own threads, which abort a process that exits meanwhile.
    """
    with open_parquet(source) as opened:
        return opened.read(columns=columns, use_threads=False)


def _kinds(kind: pa.DataType) -> Iterator[pa.DataType]:
    """A type and the types it contains."""
    yield kind
    below = [kind.field(at).type for at in range(kind.num_fields)]
    for inner in (getattr(kind, "storage_type", None), getattr(kind, "value_type", None), *below):
        if inner is not None:
            yield from _kinds(inner)
