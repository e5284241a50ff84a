"""HDF5 → Parquet shards through Ray Data, with a manifest that is published last.

A shard's name and content follow from the sources alone, it gets its name when it is complete, and one that is already
there is kept: so a conversion may be killed anywhere and run again, and workers may die, and every row is written once.
"""

import functools
import json
import logging
import os
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from scaling.data.describe import format_percentiles
from scaling.data.hdf5 import SNR_DEFINITION, SpectraFile, open_spectra, snr_percentiles
from scaling.data.manifest import (
    MANIFEST,
    SPLITS,
    STATISTICS,
    Manifest,
    Source,
    write_json,
)
from scaling.data.shardfile import (
    ERROR,
    FLUX,
    ROW_ID,
    Checksum,
    ShardSummary,
    ShardTask,
    row_groups,
    write_shard,
)
from scaling.data.statistics import PixelMoments, label_statistics, write_pixel_statistics
from scaling.errors import UserError

CONVERSION = "conversion.json"
WAVE_TOLERANCE = 1e-6
"""Å; grids closer than this are the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A conversion before it runs: everything that follows from the sources' headers and settings."""

    sources: dict[str, list[Source]]
    wave: np.ndarray
    schema: pa.Schema
    tasks: list[ShardTask]
    rows_per_shard: int

    def identity(self) -> dict[str, Any]:
        """What tells this conversion from another into the same folder; where the sources lie does not matter."""
        content = {split: [source.fingerprint for source in files] for split, files in self.sources.items()}
        return {"rows_per_shard": self.rows_per_shard, "sources": content}


def convert(
    dest: Path,
    *,
    train: list[Path],
    val: list[Path],
    test: list[Path],
    rows_per_shard: int = 4096,
    on_progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Convert HDF5 files to a set of Parquet shards on the Ray cluster that the caller is connected to.

    Run again with the same sources it does nothing, or what an interrupted run left to do.

    Args:
        dest: The shard set's folder, on a file system that every node sees.
        train: Source files of the training split, in study order.
        val: Source files of the validation split.
        test: Source files of the test split.
        rows_per_shard: Spectra in a shard.
        on_progress: Called with (shards done, shards in all).

    Returns:
        The manifest, also written as ``DEST/manifest.json``.

    Raises:
        UserError: A source cannot be used, or ``dest`` holds something else.
    """
    dest = Path(os.path.abspath(dest))
    plan = _plan({"train": train, "val": val, "test": test}, rows_per_shard)
    _claim(dest, plan)
    if (dest / MANIFEST).exists():
        return Manifest.load(dest)
    for split in SPLITS:
        (dest / split).mkdir(exist_ok=True)
    summaries = _write_shards(dest, plan, on_progress)
    leading = [summary for summary in summaries if summary.shard.file.startswith("train/")]
    write_pixel_statistics(
        dest / STATISTICS, plan.wave, functools.reduce(PixelMoments.__add__, (item.moments for item in leading))
    )
    splits = {split: [item.shard for item in summaries if item.shard.file.startswith(f"{split}/")] for split in SPLITS}
    manifest = Manifest(
        dest=dest,
        wave=plan.wave,
        splits=splits,
        sources=plan.sources,
        labels=label_statistics([dest / shard.file for shard in splits["train"]], _number_columns(plan.schema)),
        snr=snr_percentiles(np.concatenate([summary.snr for summary in leading])),
        snr_definition=SNR_DEFINITION,
        filled_edges=sum(summary.filled_edges for summary in summaries),
        rows_per_shard=rows_per_shard,
        order={"kind": "source", "seed": None},
    )
    for leftover in dest.glob("*/.part-*.tmp"):
        leftover.unlink(missing_ok=True)
    manifest.save()
    return manifest


def _plan(paths: dict[str, list[Path]], rows_per_shard: int) -> Plan:
    """Check the sources against each other and cut them into shards."""
    if rows_per_shard < 1:
        raise UserError(f"rows_per_shard is {rows_per_shard}: give at least 1, such as 4096")
    sources: dict[str, list[Source]] = {}
    tasks: list[ShardTask] = []
    kinds: dict[str, list[pa.DataType]] = {}
    first: SpectraFile | None = None
    for split, files in paths.items():
        if not files:
            raise UserError(f"no source file for the {split} split: give at least one")
        sources[split] = []
        for path in (Path(os.path.abspath(file)) for file in files):
            with open_spectra(path) as spectra:
                first = first or spectra
                _require_same_grid(first, spectra)
                _collect_columns(kinds, first, spectra)
                size = path.stat().st_size
                fingerprint = spectra.fingerprint()
                sources[split].append(Source(path=str(path), rows=spectra.num_rows, size=size, fingerprint=fingerprint))
        tasks += _cut(split, sources[split], rows_per_shard)
    assert first is not None
    tensor = pa.fixed_shape_tensor(pa.float32(), [first.num_pixels])
    fields = [pa.field(ROW_ID, pa.int64()), pa.field(FLUX, tensor), pa.field(ERROR, tensor)]
    fields += [pa.field(name, _common_kind(found)) for name, found in kinds.items()]
    return Plan(sources=sources, wave=first.wave, schema=pa.schema(fields), tasks=tasks, rows_per_shard=rows_per_shard)


def _require_same_grid(first: SpectraFile, other: SpectraFile) -> None:
    if first.num_pixels != other.num_pixels or np.abs(first.wave - other.wave).max() > WAVE_TOLERANCE:
        grids = [f"{file.path} ({file.num_pixels} pixels from {file.wave[0]:.3f} Å)" for file in (first, other)]
        raise UserError(f"{grids[0]} and {grids[1]} have different pixel grids: convert them into separate folders")


def _collect_columns(kinds: dict[str, list[pa.DataType]], first: SpectraFile, spectra: SpectraFile) -> None:
    """Add the Arrow type of each number or text column of a file to ``kinds``."""
    head = spectra.read_params(0, 1)
    found: dict[str, pa.DataType] = {}
    for name, dtype in head.dtypes.items():
        if pd.api.types.is_numeric_dtype(dtype):
            found[str(name)] = pa.from_numpy_dtype(dtype)
        elif pd.api.types.is_string_dtype(dtype):
            found[str(name)] = pa.string()
    if reserved := {ROW_ID, FLUX, ERROR} & found.keys():
        raise UserError(f"{spectra.path}: parameter column {min(reserved)!r} has a name that shards use: rename it")
    if kinds and found.keys() != kinds.keys():
        odd = min(found.keys() ^ kinds.keys())
        raise UserError(f"{first.path} and {spectra.path}: only one has the parameter column {odd!r}: make them alike")
    for name, kind in found.items():
        kinds.setdefault(name, []).append(kind)


def _common_kind(kinds: list[pa.DataType]) -> pa.DataType:
    if len(set(kinds)) == 1:
        return kinds[0]
    if pa.string() in kinds:
        return pa.string()
    return pa.from_numpy_dtype(np.result_type(*(kind.to_pandas_dtype() for kind in kinds)))


def _cut(split: str, sources: list[Source], rows_per_shard: int) -> Iterator[ShardTask]:
    """The shards of a split: a fixed number of rows each, across the borders of files."""
    total = sum(source.rows for source in sources)
    for index, first in enumerate(range(0, total, rows_per_shard)):
        segments, offset = [], 0
        for source in sources:
            start, stop = max(first - offset, 0), min(first + rows_per_shard - offset, source.rows)
            if start < stop:
                segments.append((Path(source.path), start, stop))
            offset += source.rows
        yield ShardTask(f"{split}/part-{index:05d}.parquet", first, tuple(segments))


def _claim(dest: Path, plan: Plan) -> None:
    """Write down what ``dest`` is a conversion of, or compare with what an earlier run wrote down."""
    if dest.exists() and not dest.is_dir():
        raise UserError(f"{dest} is a file: name a folder for the shards")
    dest.mkdir(parents=True, exist_ok=True)
    path = dest / CONVERSION
    if path.exists():
        if json.loads(path.read_text()) != plan.identity():
            raise UserError(f"{dest} holds shards of other sources or settings: name another folder or remove it")
    elif any(item for item in dest.iterdir() if not item.name.endswith(".tmp")):
        raise UserError(f"{dest} is not empty and holds no conversion: name another folder or empty it")
    else:
        write_json(path, plan.identity())


def _number_columns(schema: pa.Schema) -> list[str]:
    return [field.name for field in schema if not (field.name in (ROW_ID, FLUX, ERROR) or field.type == pa.string())]


def _write_shards(dest: Path, plan: Plan, on_progress: Callable[[int, int], None] | None) -> list[ShardSummary]:
    """Write the shards as Ray Data tasks; summaries in the order of the tasks, whatever order they end in."""
    import ray.data  # slow to import, and needed here only

    summaries: dict[int, ShardSummary] = {}
    with _quiet_ray_data():
        items = [{"index": index} for index in range(len(plan.tasks))]
        run = functools.partial(_run_task, tasks=plan.tasks, dest=dest, schema=plan.schema)
        shards = ray.data.from_items(items, override_num_blocks=len(items)).map(run)
        for row in shards.iter_rows():
            if row["mistake"]:
                raise UserError(row["mistake"])
            summaries[row["index"]] = pickle.loads(row["summary"])
            if on_progress:
                on_progress(len(summaries), len(items))
    return [summaries[index] for index in range(len(items))]


def _run_task(row: dict[str, Any], tasks: list[ShardTask], dest: Path, schema: pa.Schema) -> dict[str, Any]:
    """One Ray Data task.

    A user's mistake is returned, not raised: Ray would wrap it in a traceback. The summary travels as bytes, because its
    arrays differ in length and Ray Data wants one schema.
    """
    try:
        summary = write_shard(tasks[row["index"]], dest, schema)
    except UserError as error:
        return {"index": row["index"], "summary": b"", "mistake": str(error)}
    return {"index": row["index"], "summary": pickle.dumps(summary), "mistake": ""}


@contextmanager
def _quiet_ray_data() -> Iterator[None]:
    """No progress bars and no log lines but errors from Ray Data, whose settings are restored afterwards."""
    from ray.data import DataContext

    context = DataContext.get_current()
    logger = logging.getLogger("ray.data")
    before = context.enable_progress_bars, logger.level
    context.enable_progress_bars = False
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars = before[0]
        logger.setLevel(before[1])


def verify(dest: Path) -> list[str]:
    """Read every shard and compare it with the manifest.

    Returns:
        What is wrong, one sentence each; empty where nothing is.

    Raises:
        UserError: ``dest`` is not a shard set.
    """
    manifest = Manifest.load(dest)
    listed = [shard for split in manifest.splits for shard in manifest.shards(split)]

    def problem(file: str, checksum: str) -> str | None:
        if not (dest / file).exists():
            return f"{file} is missing"
        try:
            found = Checksum()
            for table in row_groups(dest / file):
                found.update(table)
        except UserError as error:
            return str(error)
        return None if found.hexdigest() == checksum else f"{file} differs from the manifest's checksum"

    with ThreadPoolExecutor() as pool:
        found = list(pool.map(problem, [s.file for s in listed], [s.checksum for s in listed]))
    extra = {str(path.relative_to(dest)) for path in dest.glob("*/*.parquet")} - {shard.file for shard in listed}
    missing = [] if (dest / STATISTICS).exists() else [f"{STATISTICS} is missing"]
    return [text for text in found if text] + [f"{file} is not in the manifest" for file in sorted(extra)] + missing


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
        f"  training SNR ({manifest.snr_definition}): {format_percentiles(manifest.snr)}",
        f"  NaN errors filled in the first or last pixel: {manifest.filled_edges}",
        f"  {'training column':<22}{'mean':>12}{'std':>12}{'min':>12}{'max':>12}{'not finite':>12}",
    ]
    for name, column in manifest.labels.items():
        values = "".join(f"{value:>12.5g}" for value in (column.mean, column.std, column.min, column.max))
        lines.append(f"  {name:<22}{values}{column.nan:>12}")
    return "\n".join(lines)
