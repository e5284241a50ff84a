"""Parquet files that another could have written: they are read as plain values, and run no code.

Needs neither Ray nor torch, so that `analysis` can use it too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def open_parquet(source: Path | bytes | pa.NativeFile, **options: Any) -> pq.ParquetFile:
    """Open a Parquet file, or its content, for `pyarrow.parquet.ParquetFile`'s options.

    A file may name a type for a column that a library of this process defines in Python, and Arrow then lets that library make
    the values: Ray Data's `ray.data.arrow_pickled_object` unpickles them. Arrow's own types run no code.

    Raises:
        pa.ArrowInvalid: It has such a column.
    """
    try:
        opened = pq.ParquetFile(pa.BufferReader(source) if isinstance(source, bytes) else source, **options)
        schema = opened.schema_arrow
    except pa.ArrowException:
        raise
    except ValueError as error:  # the type's library cannot make it of what the file says
        raise pa.ArrowInvalid(f"a column of a type that is not Arrow's own: {error}") from error
    for column in schema:
        if odd := next((kind for kind in _kinds(column.type) if isinstance(kind, pa.ExtensionType)), None):
            raise pa.ArrowInvalid(f"column {column.name} is {odd.extension_name}, which is not a type of Arrow's own")
    return opened


def read_parquet(source: Path | bytes, columns: list[str] | None = None) -> pa.Table:
    """A whole Parquet file, or its content, read by this thread alone; see `open_parquet`.

    `pyarrow.parquet.read_table` leaves the end of its work to threads of its own, which abort a process that ends meanwhile.
    """
    with open_parquet(source) as opened:
        return opened.read(columns=columns, use_threads=False)


def _kinds(kind: pa.DataType) -> Iterator[pa.DataType]:
    """A type with those that it is made of."""
    yield kind
    below = [kind.field(at).type for at in range(kind.num_fields)]
    for inner in (getattr(kind, "storage_type", None), getattr(kind, "value_type", None), *below):
        if inner is not None:
            yield from _kinds(inner)
