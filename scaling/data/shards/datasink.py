"""`ShardDatasink`: writes a Ray dataset of spectra as a shard set."""

from __future__ import annotations

import bisect
import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Float64
from numpy import ndarray
from ray.data import Datasink
from ray.data.block import Block, BlockAccessor
from ray.data.datasource import WriteResult

from scaling.data.shards.encode import (
    FILLED,
    PlannedShard,
    ShardEncoder,
    ShardSummary,
    converted,
    number_columns,
    plan_shards,
)
from scaling.data.shards.manifest import (
    MANIFEST,
    SPLITS,
    STATISTICS,
    Manifest,
    pixel_statistics_bytes,
    statistics_checksum,
)
from scaling.data.shards.records import Drift, Source, StudyOrder
from scaling.data.shards.shard import ROW_GROUP_ROWS, column_values
from scaling.data.shards.statistics import TrainingStatistics, repeated_spectra
from scaling.data.spectra import ERROR, FLUX, ROW_ID, SNR_DEFINITION, check_rows, snr_percentiles
from scaling.errors import UserError
from scaling.files import Location
from scaling.folder import Folder

NOT_TESTED = Drift(passed=True, column="", first_row=0, last_row=0, distance=0.0, p=1.0, columns=0, comparisons=0)
AS_GIVEN = StudyOrder(kind="source", seed=None, asked="source", drift=NOT_TESTED)


class ShardDatasink(Datasink[list[ShardSummary]]):
    """Writes rows of spectra as Parquet shards, and the manifest once all are complete.

    A row has ``row_id``, its position in the study order (training rows first, then validation, then test), and every other
    column of the schema, in its type or one that Arrow casts to it (flux and error are rounded to float32). A write task must
    hold whole shards, their rows in order, as those of `SpectraDatasource` do if its units are the shards' rows. A shard's
    name and content depend only on its rows and it is renamed into place once complete, so a task that is run again writes
    the same file. Until the manifest is published, last, the folder is not a dataset.

    Args:
        dest: The shard set's folder, a local path or a URI; every node must see it.
        splits: The number of rows of ``train``, ``val`` and ``test``.
        wave: Pixel centres in vacuum Å, (pixels,).
        schema: The columns of every shard.
        rows_per_shard: Rows per shard.
        sources: The source files of each split, for the manifest.
        order: The study order of the training split, for the manifest.
        kept: Summaries of existing intact shards, by file.
        expected: Checksums that shards must have, by file, where an earlier manifest lists them.
        check: Called before the manifest is published; an exception prevents publication.

    Raises:
        UserError: The schema is not one of spectra.
    """

    def __init__(
        self,
        dest: Location | Folder,
        *,
        splits: Mapping[str, int],
        wave: Float64[ndarray, " pixel"],
        schema: pa.Schema,
        rows_per_shard: int = 4096,
        sources: Mapping[str, Sequence[Source]] | None = None,
        order: StudyOrder = AS_GIVEN,
        kept: Mapping[str, ShardSummary] | None = None,
        expected: Mapping[str, str] | None = None,
        check: Callable[[], None] | None = None,
    ) -> None:
        self.folder = Folder.at(dest)
        self.planned = plan_shards(splits, rows_per_shard)
        self._schema, self._wave, self._rows_per_shard = schema, np.asarray(wave), rows_per_shard
        self._sources = {split: list((sources or {}).get(split, ())) for split in SPLITS}
        self._order, self._kept, self._expected = order, dict(kept or {}), dict(expected or {})
        self._check = check
        self._starts = [shard.start for shard in self.planned]
        tensor = pa.fixed_shape_tensor(pa.float32(), [len(self._wave)])
        for name, kind in ((ROW_ID, pa.int64()), (FLUX, tensor), (ERROR, tensor)):
            if name not in schema.names or schema.field(name).type != kind:
                raise UserError(f"the schema's column {name!r} is missing or not {kind}: give one with wave's pixels")

    def get_name(self) -> str:
        """The name shown in Ray's dashboard and progress bars."""
        return "Shards"

    def on_write_start(self, schema: pa.Schema | None = None) -> None:
        """Reject a finished set, unless its shards are being repaired.

        Raises:
            UserError: The folder has a manifest.
        """
        if not self._expected and self.folder.size(MANIFEST) is not None:
            raise UserError(f"{self.folder}: holds a finished shard set: name another folder, or remove this one")

    def write(self, blocks: Iterable[Block], ctx: object) -> list[ShardSummary]:
        """Write the whole shards in one task's blocks.

        Raises:
            UserError: A shard is incomplete or not the expected one, or a column is missing or of another kind.
            OSError: The folder cannot be written.
        """
        writing: list[Future[ShardSummary]] = []
        encoder: ShardEncoder | None = None
        with ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as unfinished:
            for group in self._row_groups(blocks):
                if encoder is None:
                    shard = self._shard_at(int(group[ROW_ID][0].as_py()))
                    stream = unfinished.enter_context(self.folder.writing(shard.file))
                    encoder = unfinished.enter_context(ShardEncoder(shard, self._schema, stream))
                encoder.add(self._as_stored(group, encoder), int(column_values(group, FILLED).sum()))
                if encoder.rows == encoder.planned.rows:
                    if writing:
                        writing[-1].result()
                    # Written to disk while the next shard is encoded.
                    writing.append(pool.submit(self._put, encoder, unfinished.pop_all()))
                    encoder = None
            if encoder is not None:
                raise UserError(
                    f"{encoder.planned.file}: a write task ends after {encoder.rows} of its {encoder.planned.rows} rows: "
                    "give the dataset whole shards a task"
                )
        return [summary.result() for summary in writing]

    def _shard_at(self, row: int) -> PlannedShard:
        total = self.planned[-1].start + self.planned[-1].rows
        if not 0 <= row < total:
            raise UserError(f"{ROW_ID} {row}: the splits have rows 0 to {total - 1}: number the dataset's rows so")
        return self.planned[bisect.bisect_right(self._starts, row) - 1]

    def _row_groups(self, blocks: Iterable[Block]) -> Iterator[pa.Table]:
        """Split rows at the ends of row groups and shards. Blocks that already are row groups are not copied."""
        held: list[pa.Table] = []
        for block in blocks:
            rows = self._conform(BlockAccessor.for_block(block).to_arrow())
            while len(rows):
                first = int((held[0] if held else rows)[ROW_ID][0].as_py())
                shard = self._shard_at(first)
                size = min(ROW_GROUP_ROWS, shard.start + shard.rows - first) - sum(map(len, held))
                held.append(rows.slice(0, size))
                rows = rows.slice(size)
                if len(held[-1]) == size:
                    yield held[0] if len(held) == 1 else pa.concat_tables(held).combine_chunks()
                    held = []
        if held:
            yield pa.concat_tables(held).combine_chunks()

    def _conform(self, block: pa.Table) -> pa.Table:
        """Convert a block to the schema's columns and types; the only extra column kept is that of the filled edges.

        Raises:
            UserError: A column is missing or cannot be converted, or a row cannot be trained on.
        """
        if not len(block):
            return block
        if missing := [name for name in self._schema.names if name not in block.column_names]:
            raise UserError(f"the dataset has no column {missing[0]!r}: shards have {', '.join(self._schema.names)}")
        columns = {field.name: converted(block[field.name], field) for field in self._schema}
        if FILLED in block.column_names:  # already checked by `Conversion.prepare`
            return pa.table(columns | {FILLED: block[FILLED]})
        rows = pa.table(columns | {FILLED: pa.array(np.zeros(len(block), np.int8))})
        flux, error, row_ids = (column_values(rows, name) for name in (FLUX, ERROR, ROW_ID))
        check_rows(flux, error, Path("the dataset"), row_ids)
        return rows

    def _as_stored(self, group: pa.Table, encoder: ShardEncoder) -> pa.Table:
        """The next row group of a shard, with ``row_id`` counted within its split."""
        shard, row_ids = encoder.planned, column_values(group, ROW_ID)
        start = shard.start + encoder.rows
        if not np.array_equal(row_ids, np.arange(start, start + len(row_ids))):
            raise UserError(
                f"{shard.file}: a write task has {ROW_ID} {row_ids[0]} to {row_ids[-1]} where {start} follows: "
                f"sort the dataset by {ROW_ID} and give it whole shards a task"
            )
        columns = {name: group[name] for name in self._schema.names if name != ROW_ID}
        columns[ROW_ID] = pa.array(row_ids - shard.start + shard.first_row)
        return pa.table([columns[name] for name in self._schema.names], schema=self._schema)

    def _put(self, encoder: ShardEncoder, unfinished: contextlib.ExitStack) -> ShardSummary:
        """Publish a shard, unless it differs from the expected one."""
        with unfinished:
            summary, file = encoder.finish(), encoder.planned.file
            if self._expected.get(file, summary.shard.checksum) != summary.shard.checksum:
                origin = ", ".join(source.path for source in self._sources[file.partition("/")[0]]) or "its sources"
                raise UserError(
                    f"{self.folder.locate(file)}: {origin} no longer hold what this shard was made from: "
                    "restore the original files, or convert into another folder"
                )
        return summary

    def on_write_complete(self, write_result: WriteResult[list[ShardSummary]]) -> None:
        """Publish the manifest for the written and the kept shards."""
        summaries = [summary for found in write_result.write_returns for summary in found] + list(self._kept.values())
        by_file = {summary.shard.file: summary for summary in summaries}
        times = Counter(summary.shard.file for summary in summaries)
        for shard in self.planned:
            if times[shard.file] != 1:
                found = "no task wrote" if not times[shard.file] else "two tasks wrote"
                raise UserError(f"{shard.file}: {found} this shard: give the dataset each {ROW_ID} once")
        self.publish([by_file[shard.file] for shard in self.planned])

    def on_write_failed(self, error: Exception) -> None:
        """Remove temporary files; shards are renamed only when whole, and the manifest is written last."""
        self._remove_leftovers()

    def _remove_leftovers(self) -> None:
        """Remove temporary files of killed writers, on file systems without nameless files."""
        for split in SPLITS:
            for file in self.folder.files(split):
                if file.endswith(".tmp"):
                    self.folder.delete(f"{split}/{file}")

    def publish(self, summaries: list[ShardSummary]) -> None:
        """Write the pixel statistics, then the manifest, from the summaries of all shards in order."""
        self._remove_leftovers()
        if self._check is not None:
            self._check()
        splits = {split: [s for s in summaries if s.shard.file.startswith(f"{split}/")] for split in SPLITS}
        training = _add_up(splits["train"])
        statistics = pixel_statistics_bytes({"wave": self._wave, **training.pixels()})
        problems = repeated_spectra(
            {split: np.concatenate([s.hashes for s in found]) for split, found in splits.items()}
        )
        drift = self._order.drift
        if self._order.kind == "source" and not drift.passed:
            problems.append(
                f"the order of train drifts ({drift.column}, rows {drift.first_row} to {drift.last_row - 1}) "
                "and was not shuffled, so its first D spectra are not a fair sample"
            )
        manifest = Manifest(
            wave=self._wave,
            splits={split: [summary.shard for summary in found] for split, found in splits.items()},
            sources=self._sources,
            labels=training.labels(number_columns(self._schema)),
            snr=snr_percentiles(training.snr),
            snr_rows=len(training.snr),
            snr_definition=SNR_DEFINITION,
            filled_edges=sum(summary.filled_edges for summary in summaries),
            rows_per_shard=self._rows_per_shard,
            order=self._order,
            problems=problems,
            statistics=statistics_checksum(statistics),
        )
        # Unchanged files are not rewritten.
        for file, content in ((STATISTICS, statistics), (MANIFEST, manifest.content())):
            if self.folder.read(file) != content:
                self.folder.write(file, content)


def _add_up(training: list[ShardSummary]) -> TrainingStatistics:
    """Combine statistics in row order, so that the sums do not depend on which task wrote which shard."""
    found = [summary.training for summary in training if summary.training is not None]
    return sum(found[1:], found[0])
