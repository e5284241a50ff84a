"""HDF5 → Parquet shards, by Ray tasks, with a manifest that is published last.

A shard's name and content follow from the sources and the settings alone, it gets its name when it is complete, and one
that is already there is kept: so a conversion may be killed anywhere and run again, and workers may die, and every row is
written once. Run again on a finished set it rewrites the shards that are gone or torn.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from scaling.data.shards.manifest import MANIFEST, SPLITS, STATISTICS, Manifest, write_json
from scaling.data.shards.order import find_drift, require_order
from scaling.data.shards.ray_tasks import Progress, disk_is_full, full_disk_as_mistake, map_on_ray
from scaling.data.shards.shardfile import (
    ShardSummary,
    ShardTask,
    footer_checksum,
    number_columns,
    read_summary,
    write_shard,
)
from scaling.data.shards.shuffle import RUN_ROWS, RunTask, plan_runs, run_groups, write_run
from scaling.data.shards.sources import Sources, cut, inspect_sources, source_groups
from scaling.data.shards.statistics import TrainingStatistics, repeated_spectra, write_pixel_statistics
from scaling.data.spectra import SNR_DEFINITION, snr_percentiles
from scaling.errors import UserError

CONVERSION = "conversion.json"
LEAST_RATIO = 0.5
"""A shard takes at least this share of its values' bytes, so a disk with less room need not be filled to find out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """A conversion before it runs; ``order`` is that of the manifest."""

    dest: Path
    sources: Sources
    tasks: list[ShardTask]
    order: dict[str, Any]

    @property
    def shuffled(self) -> bool:
        """Whether the training split is."""
        return bool(self.order["kind"] == "shuffled")


@dataclass(slots=True)
class _Written:
    """What is known of the shards written so far; their training statistics are added up, and not kept of each."""

    filled_edges: int = 0
    summaries: list[ShardSummary] = field(default_factory=list)
    training: TrainingStatistics | None = None

    def add(self, summary: ShardSummary) -> None:
        """Count the next shard in."""
        self.filled_edges += summary.filled_edges
        if found := summary.training:
            self.training = found if self.training is None else self.training + found
        self.summaries.append(replace(summary, training=None))


def convert(
    dest: Path,
    *,
    train: list[Path],
    val: list[Path],
    test: list[Path],
    rows_per_shard: int = 4096,
    order: str = "auto",
    order_seed: int = 0,
    on_progress: Progress | None = None,
) -> Manifest:
    """Convert HDF5 files to a set of Parquet shards on the Ray cluster that the caller is connected to.

    Run again with the same sources and settings it does what an interrupted run left to do; a finished set it repairs.

    Args:
        dest: The shard set's folder, on a file system that every node sees.
        train: Source files of the training split.
        val: Source files of the validation split.
        test: Source files of the test split.
        rows_per_shard: Spectra in a shard.
        order: The study order of the training split: ``source`` is that of the files; ``shuffled`` a permutation;
            ``auto`` shuffles if the files' order drifts. The other splits are used whole and keep their order.
        order_seed: Of the permutation.
        on_progress: Called with (files written, files in all).

    Returns:
        The manifest, also written as ``DEST/manifest.json``.

    Raises:
        UserError: A source cannot be used, the disk is full, or ``dest`` holds something else.
    """
    dest = Path(os.path.abspath(dest))
    if rows_per_shard < 1:
        raise UserError(f"rows_per_shard is {rows_per_shard}: give at least 1, such as 4096")
    require_order(order, order_seed)
    sources = inspect_sources({"train": train, "val": val, "test": test})
    settings = {"rows_per_shard": rows_per_shard, "order": order, "order_seed": order_seed}
    decided = _claim(dest, settings | {"sources": sources.fingerprints()}, sources)
    shuffled = decided["kind"] == "shuffled"
    tasks = [task for split in SPLITS for task in cut(sources, split, rows_per_shard, shuffled and split == "train")]
    conversion = Conversion(dest=dest, sources=sources, tasks=tasks, order=decided)
    for split in SPLITS:
        (dest / split).mkdir(exist_ok=True)
    if (dest / MANIFEST).exists():
        return _repair(conversion, Manifest.load(dest), on_progress)
    written = _write_shards(conversion, on_progress)
    _remove_leftovers(dest)
    with full_disk_as_mistake(dest, lambda: 0):
        manifest = _summarise(conversion, written, rows_per_shard)
        manifest.save()
    _remove_runs(dest)
    return manifest


def _claim(dest: Path, identity: dict[str, Any], sources: Sources) -> dict[str, Any]:
    """Decide the study order and write down what ``dest`` is a conversion of; or take what an earlier run wrote down."""
    if dest.exists() and not dest.is_dir():
        raise UserError(f"{dest} is a file: name a folder for the shards")
    path = dest / CONVERSION
    if path.exists():
        earlier = json.loads(path.read_text())
        if earlier.get("identity") != identity:
            raise UserError(f"{dest} holds shards of other sources or settings: name another folder or remove it")
        return dict(earlier["order"])
    if dest.exists() and any(item for item in dest.iterdir() if not item.name.endswith(".tmp")):
        raise UserError(f"{dest} is not empty and holds no conversion: name another folder or empty it")
    asked, seed = identity["order"], identity["order_seed"]
    drift = find_drift(sources.splits["train"])
    shuffled = asked == "shuffled" or (asked == "auto" and not drift.passed)
    order = {"kind": "shuffled" if shuffled else "source", "seed": seed if shuffled else None, "asked": asked}
    order["drift"] = asdict(drift)
    dest.mkdir(parents=True, exist_ok=True)
    write_json(path, {"identity": identity, "order": order})
    return order


def _summarise(conversion: Conversion, written: _Written, rows_per_shard: int) -> Manifest:
    """Write the pixel statistics and make the manifest."""
    sources, dest, training = conversion.sources, conversion.dest, written.training
    splits = {split: [s for s in written.summaries if s.shard.file.startswith(f"{split}/")] for split in SPLITS}
    assert training is not None
    write_pixel_statistics(dest / STATISTICS, sources.wave, training.pixels)
    drift = conversion.order["drift"]
    problems = repeated_spectra({split: np.concatenate([s.hashes for s in found]) for split, found in splits.items()})
    if not (conversion.shuffled or drift["passed"]):
        problems.append(
            f"the order of train drifts ({drift['column']}, rows {drift['first_row']} to {drift['last_row'] - 1}) "
            "and was not shuffled, so its first D spectra are not a fair sample"
        )
    return Manifest(
        dest=dest,
        wave=sources.wave,
        splits={split: [summary.shard for summary in found] for split, found in splits.items()},
        sources=sources.splits,
        labels=training.columns.statistics(number_columns(sources.schema)),
        snr=snr_percentiles(training.snr),
        snr_rows=len(training.snr),
        snr_definition=SNR_DEFINITION,
        filled_edges=written.filled_edges,
        rows_per_shard=rows_per_shard,
        order=conversion.order,
        problems=problems,
    )


def _repair(conversion: Conversion, manifest: Manifest, on_progress: Progress | None) -> Manifest:
    """Rewrite the shards of a finished set whose footer is missing or another; what they hold must be the same again."""
    dest = conversion.dest
    expected = {shard.file: shard.checksum for split in SPLITS for shard in manifest.shards(split)}
    broken = [task for task in conversion.tasks if footer_checksum(dest / task.file) != expected[task.file]]
    for task in broken:
        (dest / task.file).unlink(missing_ok=True)
    if broken:
        _write_shards(conversion, on_progress, broken, expected)
        _remove_leftovers(dest)
        _remove_runs(dest)
    if not (dest / STATISTICS).exists():
        training = [task for task in conversion.tasks if task.snr_every is not None]
        statistics = _write_shards(conversion, on_progress, training, expected).training
        assert statistics is not None
        write_pixel_statistics(dest / STATISTICS, manifest.wave, statistics.pixels)
    return manifest


def _write_shards(
    conversion: Conversion,
    on_progress: Progress | None,
    tasks: list[ShardTask] | None = None,
    expected: dict[str, str] | None = None,
) -> _Written:
    """Write the shards, or some of them, and before them what a shuffle needs.

    A whole set's runs are always written whole: they count the pixels that were filled.
    """
    dest, sources = conversion.dest, conversion.sources
    chosen = conversion.tasks if tasks is None else tasks
    missing = [task for task in chosen if conversion.shuffled and not (task.segments or (dest / task.file).exists())]
    wanted = [(task.first_row, task.first_row + task.rows) for task in missing]
    if tasks is None and conversion.shuffled:
        wanted = [(0, sources.num_rows("train"))]
    runs = _plan_runs(conversion, tuple(wanted))
    if _bytes_needed(conversion, chosen, runs) > shutil.disk_usage(dest).free:
        raise disk_is_full(dest, _bytes_needed(conversion, chosen, runs))
    total, done = len(runs) + len(chosen), 0

    def count(*_: int) -> None:
        nonlocal done
        done += 1
        if on_progress:
            on_progress(done, total)

    write = functools.partial(
        _write_one, dest=dest, sources=sources, runs=[run.file for run in runs], expected=expected or {}
    )
    with full_disk_as_mistake(dest, lambda: _bytes_needed(conversion, chosen, runs)):
        filled = sum(map_on_ray(functools.partial(write_run, schema=sources.schema), runs, count))
        written = _Written(filled_edges=filled)
        for summary in map_on_ray(write, chosen, count):
            written.add(summary)
    return written


def _write_one(
    task: ShardTask, dest: Path, sources: Sources, runs: list[Path], expected: dict[str, str]
) -> ShardSummary:
    """Keep the whole shard that is there, or write it."""
    summary = read_summary(task, dest, sources.schema)
    checksum = expected.get(task.file)
    if summary and checksum in (None, summary.shard.checksum):
        return summary
    if task.segments:
        groups = source_groups(task.segments, task.first_row, sources.schema)
    elif runs:
        groups = run_groups(runs, task.first_row, task.rows, sources.schema)
    else:
        raise UserError(f"{dest / task.file}: this shard is damaged: remove it and run the same command again")
    return write_shard(task, dest, sources.schema, groups, checksum)


def _plan_runs(conversion: Conversion, wanted: tuple[tuple[int, int], ...]) -> list[RunTask]:
    """The runs for some stretches of the study order, in a folder of their own."""
    if not wanted:
        return []
    folder = conversion.dest / f".runs-{hashlib.sha256(repr(wanted).encode()).hexdigest()[:12]}"
    folder.mkdir(exist_ok=True)
    return plan_runs(folder, conversion.sources.splits["train"], conversion.order["seed"], wanted, RUN_ROWS)


def _bytes_needed(conversion: Conversion, tasks: list[ShardTask], runs: list[RunTask]) -> int:
    """The least that the missing files among some shards and runs will take."""
    shard_rows = sum(task.rows for task in tasks if not (conversion.dest / task.file).exists())
    run_rows = sum(last - first for first, last in runs[0].wanted) if runs else 0
    written = sum(run.file.stat().st_size for run in runs if run.file.exists())
    row_bytes = 8 * len(conversion.sources.wave)
    return max(0, int(row_bytes * (LEAST_RATIO * shard_rows + run_rows)) - written)


def _remove_leftovers(dest: Path) -> None:
    for leftover in dest.glob("*/.part-*.tmp"):
        leftover.unlink(missing_ok=True)


def _remove_runs(dest: Path) -> None:
    for folder in dest.glob(".runs-*"):
        shutil.rmtree(folder, ignore_errors=True)
