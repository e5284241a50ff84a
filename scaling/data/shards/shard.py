"""STAND-IN until main has the new one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

from scaling.data.shards import shardfile
from scaling.data.shards.manifest import Manifest
from scaling.data.shards.shardfile import ERROR, FLUX, ROW_ID, Checksum, column_values
from scaling.errors import UserError
from scaling.folder import Folder

__all__ = ["ERROR", "FLUX", "ROW_ID", "Checksum", "column_values", "row_groups", "shard_blocks"]


def row_groups(
    folder: Folder, file: str, groups: Iterable[int] | None = None, columns: list[str] | None = None
) -> Iterator[pa.Table]:
    assert folder.local is not None
    return shardfile.row_groups(folder.local / file, groups, columns)


def shard_blocks(manifest: Manifest, split: str, index: int) -> Iterator[pa.Table]:
    shard, checksum, ids = manifest.shards(split)[index], Checksum(), []
    first = sum(each.rows for each in manifest.shards(split)[:index])
    for table in row_groups(manifest.folder, shard.file):
        if not {FLUX, ERROR, ROW_ID} <= set(table.column_names):
            break
        checksum.update(table)
        ids.append(column_values(table, ROW_ID))
        yield table
    if (
        not ids
        or not np.array_equal(np.concatenate(ids), first + np.arange(shard.rows))
        or checksum.hexdigest() != shard.checksum
    ):
        raise UserError(f"{manifest.dest}/{shard.file}: differs from the manifest: remove it and run `scaling shard` again")
