"""Verification of a shard set against its manifest and its sources, and its description as text."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa

from scaling.console import Count, uncounted
from scaling.data.hdf5.describe import format_percentiles
from scaling.data.shards.convert import Conversion
from scaling.data.shards.encode import PlannedShard, plan_shards
from scaling.data.shards.manifest import SPLITS, Manifest
from scaling.data.shards.read import read_units
from scaling.data.shards.shard import ROW_GROUP_ROWS, column_values, shard_blocks
from scaling.data.shards.sources import inspect_sources
from scaling.data.spectra import ROW_ID
from scaling.errors import UserError
from scaling.files import Location, size_text


def verify(dest: Location, sources: bool = False, progress: Count = uncounted) -> list[str]:
    """Read every shard and compare it with the manifest and, optionally, with the source files.

    Args:
        dest: The shard set.
        sources: Whether to read the source files again as well and compare every value of every spectrum.
        progress: Called after each shard with (shards done, total shards).

    Returns:
        The problems, one sentence each; empty if there are none.

    Raises:
        UserError: ``dest`` is not a shard set, or a source file is gone.
    """
    manifest = Manifest.read(dest)
    conversion = _conversion(manifest) if sources else None
    splits = {split: manifest.num_rows(split) for split in SPLITS}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        planned = plan_shards(splits, manifest.rows_per_shard)
        problems = []
        for found in pool.map(lambda shard: _shard_problem(manifest, conversion, shard), planned):
            problems.append(found)
            progress(len(problems), len(planned))
    listed = {shard.file for split in SPLITS for shard in manifest.shards(split)}
    there = {f"{split}/{file}" for split in SPLITS for file in manifest.folder.files(split)}
    extra = sorted(file for file in there - listed if file.endswith(".parquet"))
    problems += [f"{file} is not in the manifest" for file in extra]
    try:
        manifest.pixel_statistics()
    except UserError as error:
        problems.append(str(error))
    return [problem for problem in problems if problem]


def _conversion(manifest: Manifest) -> Conversion:
    """Reconstruct the conversion of a shard set from its sources in their current state.

    Raises:
        UserError: A source is gone or has another number of spectra.
    """
    made_from = [source for split in SPLITS for source in manifest.sources[split]]
    for source in made_from:
        if not Path(source.path).is_file():
            raise UserError(f"{source.path}: this source file is gone: put it back, or verify without the sources")
    sources = inspect_sources(Path(source.path) for source in made_from)
    for now, then in zip(sources.files, made_from, strict=True):
        if now.rows != then.rows:
            raise UserError(f"{now.path}: {now.rows} spectra, {then.rows} when it was converted")
    return Conversion(
        folder=manifest.folder,
        sources=sources,
        by_split=manifest.sources,
        order=manifest.order,
        rows_per_shard=manifest.rows_per_shard,
    )


def _shard_problem(manifest: Manifest, conversion: Conversion | None, planned: PlannedShard) -> str:
    """The problem of a shard; empty if there is none."""
    split, index = planned.file.partition("/")[0], planned.first_row // manifest.rows_per_shard
    try:
        blocks = shard_blocks(manifest, split, index)
        if conversion is None:
            for _ in blocks:
                pass
            return ""
        return _difference(blocks, conversion, planned)
    except UserError as error:
        return str(error)


def _difference(blocks: Iterator[pa.Table], conversion: Conversion, planned: PlannedShard) -> str:
    """The first row of a shard that differs from its source."""
    sources, unit = conversion.sources, conversion.row_numbers(planned)
    again = _row_groups(map(conversion.prepare, read_units([unit], sources, sources.schema.names, _all(sources.wave))))
    found, done = "", 0
    for stored in blocks:
        source = next(again)
        names = [name for name in sources.schema.names if name != ROW_ID]
        different = {name: _rows_that_differ(stored, source, name) for name in names}
        rows = np.logical_or.reduce(list(different.values()))
        if rows.any() and not found:
            row = int(rows.argmax())
            number = int(unit[done + row])
            path, start, _ = next(sources.ranges(number, number + 1))
            columns = ", ".join(name for name in names if different[name][row])
            found = f"{planned.file} row {done + row} differs from {path} row {start} in {columns}"
        done += len(stored)
    return found


def _all(wave: np.ndarray) -> range:
    return range(len(wave))


def _row_groups(blocks: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Merge source blocks where a row group of the shard spans two files."""
    held: pa.Table | None = None
    for block in blocks:
        held = block if held is None else pa.concat_tables([held, block])
        while len(held) >= ROW_GROUP_ROWS:
            yield held.slice(0, ROW_GROUP_ROWS)
            held = held.slice(ROW_GROUP_ROWS)
    if held is not None and len(held):
        yield held


def _rows_that_differ(stored: pa.Table, source: pa.Table, name: str) -> np.ndarray:
    """Mask of rows whose bits differ in a column."""
    one, two = column_values(stored, name), column_values(source, name)
    if one.dtype == object or two.dtype == object:
        return np.array([str(a) != str(b) for a, b in zip(one, two, strict=True)])
    if one.dtype != two.dtype:
        return np.ones(len(one), bool)
    bits = [np.ascontiguousarray(values).view(np.uint8).reshape(len(values), -1) for values in (one, two)]
    return (bits[0] != bits[1]).any(axis=1)


def describe_shards(dest: Location) -> str:
    """Describe the contents of a shard set as plain text.

    Raises:
        UserError: ``dest`` is not a shard set.
    """
    manifest = Manifest.read(dest)
    low, high = manifest.wave[0], manifest.wave[-1]
    lines = [f"{dest}", f"  {manifest.pixels} pixels, {low:.2f} to {high:.2f} Å (vacuum)"]
    for split in SPLITS:
        lines.append(f"  {split}: {manifest.num_rows(split)} spectra in {len(manifest.shards(split))} shards, from")
        lines += [
            f"    {source.path} ({source.rows} spectra, {size_text(source.size)})" for source in manifest.sources[split]
        ]
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
    """The study order and its reason, in a few words."""
    order = manifest.order
    how = f"shuffled with seed {order.seed}" if order.kind == "shuffled" else "as in the source files"
    return f"{how} (asked: {order.asked}); the files' order: {order.drift}"
