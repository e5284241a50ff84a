"""HDF5 → Parquet shards: one fused Ray Data pipeline, read → check → write; the manifest is published last.

A shard's name and content depend only on the sources and the settings. It is renamed into place once complete, and a whole
shard is kept. So a conversion may be killed at any point and run again, workers may die, and every row is still written
exactly once. Run on a finished set, it reads all of it and rewrites shards that are missing, truncated or altered.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pyarrow as pa

from scaling.data.shards.encode import FILLED, PlannedShard, ShardSummary, plan_shards, read_summary, tensor_array
from scaling.data.shards.manifest import MANIFEST, SPLITS, Manifest, parse_manifest
from scaling.data.shards.order import find_drift, study_order, study_positions
from scaling.data.shards.pipeline import map_on_ray, task_errors, write_shards, write_shards_here
from scaling.data.shards.records import Order, Source, StudyOrder
from scaling.data.shards.shard import column_values
from scaling.data.shards.sources import Sources, inspect_sources
from scaling.data.spectra import ERROR, FLUX, ROW_ID, check_rows, edge_faults, fill_edges
from scaling.errors import UserError
from scaling.files import Location, json_bytes, require_space
from scaling.folder import Folder
from scaling.parse import Strict, parse, parse_object

if TYPE_CHECKING:
    from scaling.data.shards.datasink import ShardDatasink

CONVERSION = "conversion.json"
LEAST_RATIO = 0.5
"""A shard takes at least this share of its values' size; a disk with less space is rejected before it is filled."""


class Identity(Strict):
    """What a folder is a conversion of: the settings, and the fingerprints of the source files by split."""

    rows_per_shard: int
    order: Order
    order_seed: int
    sources: dict[str, list[str]]


class Claim(Strict):
    """``conversion.json``: the identity of the conversion, and the study order that was chosen."""

    identity: Identity
    order: StudyOrder


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """A planned conversion: the files of all splits as one sequence, and the study order of the training split."""

    folder: Folder
    sources: Sources
    by_split: dict[str, list[Source]]
    order: StudyOrder
    rows_per_shard: int

    @property
    def splits(self) -> dict[str, int]:
        """The number of rows of each split."""
        return {split: sum(source.rows for source in files) for split, files in self.by_split.items()}

    @property
    def planned(self) -> list[PlannedShard]:
        """All shards, in the study order of all splits."""
        return plan_shards(self.splits, self.rows_per_shard)

    def sink(self, kept: Mapping[str, ShardSummary], expected: Mapping[str, str]) -> ShardDatasink:
        """The data sink that writes the shards; see `ShardDatasink` for the arguments."""
        from scaling.data.shards.datasink import ShardDatasink  # imports Ray

        return ShardDatasink(
            self.folder,
            splits=self.splits,
            wave=self.sources.wave,
            schema=self.sources.schema,
            rows_per_shard=self.rows_per_shard,
            sources=self.by_split,
            order=self.order,
            kept=kept,
            expected=expected,
            check=self.sources.require_unchanged,
        )

    def row_numbers(self, shard: PlannedShard) -> range | np.ndarray:
        """Source rows of a shard, in the shard's order."""
        rows = range(shard.start, shard.start + shard.rows)
        if self.order.kind == "source" or shard.start >= self.splits["train"]:
            return rows
        return study_order(self.splits["train"], self.order.seed or 0)[rows.start : rows.stop]

    def prepare(self, block: pa.Table) -> pa.Table:
        """Prepare rows for writing: checks them, fills NaN errors at the edges, numbers them in study order.

        Raises:
            UserError: A row cannot be trained on; the message names the file and the row in it.
        """
        rows = column_values(block, ROW_ID)
        flux, error = column_values(block, FLUX), column_values(block, ERROR)
        filled = edge_faults(error)
        if filled.any():
            error = error.copy()
            fill_edges(error)
            block = block.set_column(block.column_names.index(ERROR), ERROR, tensor_array(error))
        for path, places, within in self.sources.places(rows):
            whole = len(places) == len(rows)
            check_rows(flux if whole else flux[places], error if whole else error[places], path, within)
        training = self.splits["train"]
        if self.order.kind == "shuffled":
            rows = np.where(rows < training, study_positions(training, self.order.seed or 0)[rows % training], rows)
        block = block.set_column(block.column_names.index(ROW_ID), ROW_ID, pa.array(rows))
        return block.append_column(FILLED, pa.array(filled.astype(np.int8)))


def convert(
    dest: Location,
    *,
    train: Iterable[Path],
    val: Iterable[Path],
    test: Iterable[Path],
    rows_per_shard: int = 4096,
    order: str = "auto",
    order_seed: int = 0,
    say: Callable[[str], None] | None = None,
    on_ray: bool = True,
) -> Manifest:
    """Convert HDF5 files to a set of Parquet shards, on the Ray cluster that the caller is connected to.

    Run again with the same sources and settings, it completes an interrupted conversion or repairs a finished set.

    Args:
        dest: The shard set's folder, a path or URI that every node sees.
        train: Source files of the training split, on a file system that every node sees.
        val: Source files of the validation split.
        test: Source files of the test split.
        rows_per_shard: Spectra per shard.
        order: The study order of the training split: ``source`` keeps that of the files; ``shuffled`` is a permutation;
            ``auto`` shuffles if the files' order drifts. The other splits are always used whole and keep their order.
        order_seed: Seed of the permutation.
        say: Called with progress messages, one line at a time, and with Ray Data's own statistics of the pipeline.
        on_ray: Whether to run on Ray Data; otherwise in this process, one shard after the other.

    Returns:
        The manifest, also written as ``DEST/manifest.json``.

    Raises:
        UserError: A source cannot be used, the disk is full, or ``dest`` holds something else.
    """
    from scaling.data.shards.datasource import SpectraDatasource  # imports Ray

    settings = _settings(rows_per_shard, order, order_seed)
    with task_errors(dest):
        conversion = _plan(Folder.at(dest), {"train": train, "val": val, "test": test}, settings)
        folder, planned, listed = conversion.folder, conversion.planned, _listed(conversion.folder)
        kept = _whole_shards(
            conversion, listed, map_on_ray if on_ray else lambda function, items: [*map(function, items)]
        )
        if kept and say:
            say(f"{len(kept)} of {len(planned)} shards are there and whole")
        sink, missing = conversion.sink(kept, listed), [shard for shard in planned if shard.file not in kept]
        if missing:
            require_space(str(folder), _bytes_needed(conversion))
            datasource = SpectraDatasource(
                conversion.sources, rows=[conversion.row_numbers(shard) for shard in missing]
            )
            write, cpus = (write_shards, _cpus()) if on_ray else (write_shards_here, 1)
            statistics = write(datasource, conversion.prepare, sink, datasource.num_tasks(cpus))
            if say:
                say(statistics)
        else:
            sink.publish([kept[shard.file] for shard in planned])
    return Manifest.read(folder)


def _plan(folder: Folder, paths: Mapping[str, Iterable[Path]], settings: dict[str, Any]) -> Conversion:
    """Check the sources, and claim the folder for their conversion."""
    files = {split: list(some) for split, some in paths.items()}
    if empty := [split for split in SPLITS if not files[split]]:
        raise UserError(f"no source file for the {empty[0]} split: give at least one")
    sources = inspect_sources(Path(path) for split in SPLITS for path in files[split])
    of_all = iter(sources.files)
    by_split = {split: [next(of_all) for _ in files[split]] for split in SPLITS}
    fingerprints = {split: [source.fingerprint for source in some] for split, some in by_split.items()}
    order = _claim(folder, Identity(**settings, sources=fingerprints), by_split["train"])
    rows = settings["rows_per_shard"]
    return Conversion(folder=folder, sources=sources, by_split=by_split, order=order, rows_per_shard=rows)


def _settings(rows_per_shard: int, order: str, order_seed: int) -> dict[str, Any]:
    if rows_per_shard < 1:
        raise UserError(f"rows_per_shard is {rows_per_shard}: give at least 1, such as 4096")
    if order not in get_args(Order):
        raise UserError(f"order is {order!r}: name one of {', '.join(get_args(Order))}")
    if not 0 <= order_seed < 2**63:
        raise UserError(f"order seed is {order_seed}: give a whole number from 0 to 2^63 − 1")
    return {"rows_per_shard": rows_per_shard, "order": order, "order_seed": order_seed}


def _cpus() -> int:
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def _claim(folder: Folder, identity: Identity, train: list[Source]) -> StudyOrder:
    """Choose the study order and record what ``folder`` is a conversion of, or load the record of an earlier run."""
    place, remedy = folder.locate(CONVERSION), "remove this folder, or convert into another"
    if folder.local and folder.local.exists() and not folder.local.is_dir():
        raise UserError(f"{folder} is a file: name a folder for the shards")
    if folder.size(CONVERSION) is not None:
        earlier = parse(Claim, parse_object(folder.read(CONVERSION) or b"", place, remedy), place, remedy)
        if earlier.identity != identity:
            raise UserError(f"{folder} holds shards of other sources or settings: name another folder or remove it")
        return earlier.order
    if folder.folders() or any(not name.endswith(".tmp") for name in folder.files()):
        raise UserError(f"{folder} is not empty and holds no conversion: name another folder or empty it")
    drift = find_drift(train)
    shuffled = identity.order == "shuffled" or (identity.order == "auto" and not drift.passed)
    order = StudyOrder(
        kind="shuffled" if shuffled else "source",
        seed=identity.order_seed if shuffled else None,
        asked=identity.order,
        drift=drift,
    )
    folder.write(CONVERSION, json_bytes(Claim(identity=identity, order=order).model_dump(mode="json")))
    return order


def _listed(folder: Folder) -> dict[str, str]:
    """The shard checksums in a finished set's manifest; empty if there is none. An unusable one is removed.

    Raises:
        OSError: It cannot be read, so it may be sound.
    """
    content = folder.read(MANIFEST)
    if content is None:
        return {}
    try:
        manifest = parse_manifest(content, folder.locate(MANIFEST))
    except UserError:
        folder.delete(MANIFEST)
        return {}
    return {shard.file: shard.checksum for split in SPLITS for shard in manifest.shards(split)}


def _whole_shards(
    conversion: Conversion, listed: Mapping[str, str], apply: Callable[..., list[ShardSummary | None]]
) -> dict[str, ShardSummary]:
    """Summaries of the intact existing shards, by file. Every page is read; `apply` maps a function over a list."""
    folder = conversion.folder
    there = {f"{split}/{name}" for split in SPLITS for name in folder.files(split)}
    present = [shard for shard in conversion.planned if shard.file in there]
    found = apply(functools.partial(read_summary, folder=folder, schema=conversion.sources.schema), present)
    return {
        summary.shard.file: summary
        for summary in found
        if summary and listed.get(summary.shard.file, summary.shard.checksum) == summary.shard.checksum
    }


def _bytes_needed(conversion: Conversion) -> int:
    """Lower bound on the size of the missing shards, in bytes."""
    rows = sum(shard.rows for shard in conversion.planned if conversion.folder.size(shard.file) is None)
    return int(8 * len(conversion.sources.wave) * LEAST_RATIO * rows)
