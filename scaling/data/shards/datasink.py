"""`ShardDatasink`: a Ray dataset of spectra, written as a shard set."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Float64
from numpy import ndarray
from ray.data import Datasink
from ray.data.datasource import WriteResult

from scaling.data.shards.encode import FILLED, PlannedShard, ShardEncoder, ShardSummary, number_columns, plan_shards
from scaling.data.shards.manifest import (
    MANIFEST,
    SPLITS,
    STATISTICS,
    Drift,
    Manifest,
    Source,
    StudyOrder,
    pixel_statistics_bytes,
    statistics_checksum,
)
from scaling.data.shards.shard import ROW_GROUP_ROWS, column_values
from scaling.data.shards.statistics import TrainingStatistics, repeated_spectra
from scaling.data.spectra import ROW_ID, SNR_DEFINITION, snr_percentiles
from scaling.errors import UserError
from scaling.files import Location
from scaling.folder import Folder

NOT_TESTED = Drift(passed=True, column="", first_row=0, last_row=0, distance=0.0, p=1.0, columns=0, comparisons=0)
AS_GIVEN = StudyOrder(kind="source", seed=None, asked="source", drift=NOT_TESTED)


class ShardDatasink(Datasink[list[ShardSummary]]):
    """Writes rows of spectra as Parquet shards, and the manifest when all are there.

    A row has ``row_id``: its place in the study order, training rows first, then validation, then test. A write task must hold
    whole shards, their rows in order (those of `SpectraDatasource` do, given the shards' rows as its units). A shard's
    name and content follow from its rows alone and it gets its name when it is complete, so a task that is run again writes
    the same file. Until the manifest is published, last, the folder is not a dataset.

    Args:
        dest: The shard set's folder, a local path or a URI; every node must see it.
        splits: The number of rows of ``train``, ``val`` and ``test``.
        wave: Pixel centres in vacuum Å, (pixels,).
        schema: The columns of every shard.
        rows_per_shard: Rows of a shard.
        sources: The files each split is from, for the manifest.
        order: The study order of the training split, for the manifest.
        kept: Summaries of whole shards that are there already, by file.
        expected: The checksums that shards must have, by file, where a manifest says so.
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
    ) -> None:
        self.folder = Folder.at(dest)
        self.planned = plan_shards(splits, rows_per_shard)
        self._schema, self._wave, self._rows_per_shard = schema, np.asarray(wave), rows_per_shard
        self._sources = {split: list((sources or {}).get(split, ())) for split in SPLITS}
        self._order, self._kept, self._expected = order, dict(kept or {}), dict(expected or {})
        self._starts = [shard.start for shard in self.planned]

    def get_name(self) -> str:
        """The name on Ray's pages and progress bars."""
        return "Shards"

    def write(self, blocks: Iterable[pa.Table], ctx: object) -> list[ShardSummary]:
        """Write the whole shards that one task's blocks hold.

        Raises:
            UserError: They are not whole, or a shard is not the one that is expected.
            OSError: The folder cannot be written.
        """
        summaries = []
        encoder: ShardEncoder | None = None
        for group in self._row_groups(blocks):
            encoder = encoder or ShardEncoder(self._shard_at(int(group[ROW_ID][0].as_py())), self._schema)
            encoder.add(self._as_stored(group, encoder.planned), int(column_values(group, FILLED).sum()))
            if encoder.rows == encoder.planned.rows:
                summaries.append(self._put(encoder))
                encoder = None
        if encoder is not None:
            raise ValueError(
                f"{encoder.planned.file}: a write task ends within it: give the dataset whole shards a task"
            )
        return summaries

    def _shard_at(self, row: int) -> PlannedShard:
        return self.planned[bisect.bisect_right(self._starts, row) - 1]

    def _row_groups(self, blocks: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """The rows cut where row groups and shards end. Blocks that are row groups already are not copied."""
        held: list[pa.Table] = []
        for block in blocks:
            rows = block if FILLED in block.column_names else _without_filled(block)
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

    def _as_stored(self, group: pa.Table, shard: PlannedShard) -> pa.Table:
        """A row group with its place in its split."""
        row_ids = column_values(group, ROW_ID)
        start = int(row_ids[0])
        if not np.array_equal(row_ids, np.arange(start, start + len(row_ids))):
            raise ValueError(f"{shard.file}: its rows are not in order: sort the dataset by {ROW_ID}")
        columns = {name: group[name] for name in self._schema.names if name != ROW_ID}
        columns[ROW_ID] = pa.array(row_ids - shard.start + shard.first_row)
        return pa.table([columns[name] for name in self._schema.names], schema=self._schema)

    def _put(self, encoder: ShardEncoder) -> ShardSummary:
        content, summary = encoder.finish()
        file = encoder.planned.file
        if self._expected.get(file, summary.shard.checksum) != summary.shard.checksum:
            origin = ", ".join(source.path for source in self._sources[file.partition("/")[0]]) or "its sources"
            raise UserError(
                f"{self.folder.locate(file)}: {origin} no longer hold what this shard was made from: "
                "restore the original files, or convert into another folder"
            )
        self.folder.write(file, content)
        return summary

    def on_write_complete(self, write_result: WriteResult[list[ShardSummary]]) -> None:
        """Publish what was written and what was kept."""
        written = {summary.shard.file: summary for found in write_result.write_returns for summary in found}
        summaries = [(written | self._kept).get(shard.file) for shard in self.planned]
        if None in summaries:
            raise ValueError(f"{self.planned[summaries.index(None)].file}: no task wrote this shard")
        self.publish([summary for summary in summaries if summary is not None])

    def on_write_failed(self, error: Exception) -> None:
        """Leave nothing that looks finished: shards have their names only when whole, and the manifest is the last file."""
        self._remove_leftovers()

    def _remove_leftovers(self) -> None:
        """Remove what killed writers left on a file system without nameless files."""
        for split in SPLITS:
            for file in self.folder.files(split):
                if file.endswith(".tmp"):
                    self.folder.delete(f"{split}/{file}")

    def publish(self, summaries: list[ShardSummary]) -> None:
        """Write the pixel statistics, and last the manifest, from the summaries of all shards in their order."""
        self._remove_leftovers()
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
        # What is the same already is left alone.
        for file, content in ((STATISTICS, statistics), (MANIFEST, manifest.content())):
            if self.folder.read(file) != content:
                self.folder.write(file, content)


def _without_filled(block: pa.Table) -> pa.Table:
    return block.append_column(FILLED, pa.array(np.zeros(len(block), np.int8)))


def _add_up(training: list[ShardSummary]) -> TrainingStatistics:
    """In row order, so that the sums are the same whoever wrote the shards."""
    found = [summary.training for summary in training if summary.training is not None]
    return sum(found[1:], found[0])
