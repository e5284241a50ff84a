"""Whether a shard set is what its manifest says, and what its sources hold; and what it holds, in words."""

from __future__ import annotations

import functools
import itertools
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from jaxtyping import UInt64
from numpy import ndarray

from scaling.data.hdf5.describe import format_percentiles
from scaling.data.hdf5.reader import open_spectra
from scaling.data.shards.manifest import SPLITS, STATISTICS, Manifest, Shard
from scaling.data.shards.order import Drift, study_positions
from scaling.data.shards.shardfile import (
    ERROR,
    FLUX,
    ROW_GROUP_ROWS,
    ROW_ID,
    Checksum,
    column_values,
    params_table,
    row_groups,
    spectra_table,
)
from scaling.data.shards.sources import segments
from scaling.errors import UserError

SOURCE_ROWS = 4096
"""Source rows that a thread hashes in one go."""
_PARAMS_LOCK = threading.Lock()  # PyTables is not made for threads


def verify(dest: Path, sources: bool = False) -> list[str]:
    """Read every shard and compare it with the manifest, and if asked with the files it was made from.

    Args:
        dest: The shard set.
        sources: Whether to read the source files again as well and compare every value of every spectrum, by a 64-bit
            hash of each; 32 bytes a spectrum are held.

    Returns:
        What is wrong, one sentence each; empty where nothing is.

    Raises:
        UserError: ``dest`` is not a shard set, or a source file is gone.
    """
    manifest = Manifest.load(dest)
    if sources:
        _require_sources(manifest)
    problems: list[str] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for split in SPLITS:
            shards = manifest.shards(split)
            found = list(pool.map(lambda shard: _read_shard(manifest.dest, shard, hashing=sources), shards))
            broken = [problem for problem, _ in found if problem]
            problems += broken
            if sources and not broken:
                problems += _compare(manifest, split, np.concatenate([hashes for _, hashes in found]), pool)
    listed = {shard.file for split in SPLITS for shard in manifest.shards(split)}
    extra = {str(path.relative_to(dest)) for path in dest.glob("*/*.parquet")} - listed
    missing = [] if (dest / STATISTICS).exists() else [f"{STATISTICS} is missing"]
    return problems + [f"{file} is not in the manifest" for file in sorted(extra)] + missing


def _read_shard(dest: Path, shard: Shard, *, hashing: bool) -> tuple[str | None, UInt64[ndarray, " row"]]:
    """What is wrong with a shard, and a hash of each row if asked."""
    checksum, hashes = Checksum(), [np.empty(0, np.uint64)]
    if not (dest / shard.file).exists():
        return f"{shard.file} is missing", hashes[0]
    try:
        for table in row_groups(dest / shard.file):
            checksum.update(table)
            if hashing:
                hashes.append(row_hashes(table))
    except UserError as error:
        return str(error), hashes[0]
    same = checksum.hexdigest() == shard.checksum
    return None if same else f"{shard.file} differs from the manifest's checksum", np.concatenate(hashes)


def row_hashes(table: pa.Table) -> UInt64[ndarray, " row"]:
    """A hash of each row's values, but for its place in the study order."""
    columns = [column_values(table, name) for name in table.column_names if name not in (ROW_ID, FLUX, ERROR)]
    numbers = [column for column in columns if column.dtype != object]
    words = [column for column in columns if column.dtype == object]
    params = np.rec.fromarrays(numbers) if numbers else np.zeros((len(table), 0), np.uint8)
    texts = ["\0".join(map(str, row)) for row in zip(*words, strict=True)] if words else itertools.repeat("")
    found = np.empty(len(table), np.uint64)
    spectra = zip(column_values(table, FLUX), column_values(table, ERROR), params, texts, strict=False)
    for row, (flux, error, param, text) in enumerate(spectra):
        digest = xxhash.xxh3_64(flux)
        digest.update(error)
        digest.update(param.tobytes())
        digest.update(text.encode())
        found[row] = digest.intdigest()
    return found


def _require_sources(manifest: Manifest) -> None:
    for source in itertools.chain.from_iterable(manifest.sources.values()):
        path = Path(source.path)
        if not path.is_file():
            raise UserError(f"{path}: this source file is gone: put it back, or verify without the sources")
        with open_spectra(path) as spectra:
            if spectra.num_rows != source.rows:
                raise UserError(f"{path}: {spectra.num_rows} spectra, {source.rows} when it was converted")


def _compare(manifest: Manifest, split: str, in_shards: UInt64[ndarray, " row"], pool: ThreadPoolExecutor) -> list[str]:
    """The first row of a split that is not what its source holds, with the number of such rows."""
    files, schema = manifest.sources[split], pq.read_schema(manifest.dest / manifest.shards(split)[0].file)
    parts = [
        (Path(source.path), start, min(start + SOURCE_ROWS, source.rows))
        for source in files
        for start in range(0, source.rows, SOURCE_ROWS)
    ]
    in_sources = np.concatenate(list(pool.map(functools.partial(_source_hashes, schema=schema), parts)))
    shuffled = split == "train" and manifest.order["kind"] == "shuffled"
    positions = (
        study_positions(len(in_shards), manifest.order["seed"]) if shuffled else np.arange(len(in_shards), dtype=int)
    )
    different = np.flatnonzero(in_shards[positions] != in_sources)
    if not len(different):
        return []
    first = int(different[0])
    path, row, _ = next(segments(files, first, first + 1))
    return [
        f"{_differences(manifest, split, int(positions[first]), path, row, schema)}, "
        f"the first of {len(different)} such rows of {split}"
    ]


def _source_tables(path: Path, start: int, stop: int, schema: pa.Schema) -> Iterator[pa.Table]:
    """Rows of a source as a shard has them, but for their place in the study order."""
    with open_spectra(path) as spectra:
        with _PARAMS_LOCK:
            params = params_table(spectra.read_params(start, stop), schema, path)
        for row, flux, error in spectra.blocks(start, stop):
            some = params.slice(row - start, len(flux))
            yield spectra_table(row + np.arange(len(flux)), flux, error, some, schema)


def _source_hashes(part: tuple[Path, int, int], schema: pa.Schema) -> UInt64[ndarray, " row"]:
    return np.concatenate([row_hashes(table) for table in _source_tables(*part, schema)])


def _differences(manifest: Manifest, split: str, row_id: int, path: Path, row: int, schema: pa.Schema) -> str:
    """Which columns of a row differ, in words."""
    shard = manifest.shards(split)[row_id // manifest.rows_per_shard]
    within = row_id % manifest.rows_per_shard
    (group,) = row_groups(manifest.dest / shard.file, [within // ROW_GROUP_ROWS])
    converted = group.slice(within % ROW_GROUP_ROWS, 1)
    (source,) = _source_tables(path, row, row + 1, schema)
    names = [name for name in schema.names if name != ROW_ID and _bytes(converted, name) != _bytes(source, name)]
    return f"{shard.file} row {within} differs from {path} row {row} in {', '.join(names)}"


def _bytes(table: pa.Table, name: str) -> bytes | str:
    values = column_values(table, name)
    return str(values) if values.dtype == object else values.tobytes()


def describe_shards(dest: Path) -> str:
    """What a shard set holds, as plain text.

    Raises:
        UserError: ``dest`` is not a shard set.
    """
    manifest = Manifest.load(dest)
    low, high = manifest.wave[0], manifest.wave[-1]
    lines = [f"{dest}", f"  {manifest.pixels} pixels, {low:.2f} to {high:.2f} Å (vacuum)"]
    for split, files in manifest.sources.items():
        shards = manifest.shards(split)
        lines.append(f"  {split}: {manifest.num_rows(split)} spectra in {len(shards)} shards, from")
        lines += [f"    {source.path} ({source.rows} spectra, {source.size / 1e9:.2f} GB)" for source in files]
    lines += [
        f"  order of train: {describe_order(manifest)}",
        f"  training SNR ({manifest.snr_definition}; {manifest.snr_rows} spectra): {format_percentiles(manifest.snr)}",
        f"  NaN errors filled in the first or last pixel: {manifest.filled_edges}",
        f"  {'training column':<22}{'mean':>12}{'std':>12}{'min':>12}{'max':>12}{'not finite':>12}",
    ]
    for name, column in manifest.labels.items():
        values = "".join(f"{value:>12.5g}" for value in (column.mean, column.std, column.min, column.max))
        lines.append(f"  {name:<22}{values}{column.nan:>12}")
    return "\n".join(lines + [f"  PROBLEM: {problem}" for problem in manifest.problems])


def describe_order(manifest: Manifest) -> str:
    """The study order and why it is so, in a few words."""
    kind, seed, asked = (manifest.order[name] for name in ("kind", "seed", "asked"))
    how = f"shuffled with seed {seed}" if kind == "shuffled" else "as in the source files"
    return f"{how} (asked: {asked}); the files' order: {Drift(**manifest.order['drift'])}"
