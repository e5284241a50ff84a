"""A split written in an order that is not its sources', in two passes with bounded memory.

The first pass writes *runs*: the rows of a few thousand source rows each, sorted by their place in the study order. The
second takes each shard's rows out of every run, where they lie side by side. What comes out follows from the seed and the
sources alone, not from how many rows a run has or who wrote it when.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int64
from numpy import ndarray

from scaling.data.hdf5.reader import open_spectra
from scaling.data.shards.manifest import Source, published
from scaling.data.shards.order import study_positions
from scaling.data.shards.shardfile import (
    CHECKSUM,
    ERROR,
    FILLED_EDGES,
    FLUX,
    ROW_GROUP_ROWS,
    ROW_ID,
    Checksum,
    column_values,
    params_table,
    spectra_table,
)
from scaling.data.shards.sources import checked_pieces

RUN_ROWS = 4096
"""Rows that a worker of either pass holds: 128 MiB at 4096 pixels, and a chunk of the simulator's large files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTask:
    """A run to write.

    Attributes:
        file: The run.
        source: The file its rows are from.
        start: The first of them in that file.
        stop: The end of them.
        first_row: The position of ``start`` in the split's source order.
        num_rows: Rows of the whole split.
        seed: Of its order.
        wanted: The stretches of the study order that are needed, as (first row, last row).
    """

    file: Path
    source: Path
    start: int
    stop: int
    first_row: int
    num_rows: int
    seed: int
    wanted: tuple[tuple[int, int], ...]

    def positions(self) -> Int64[ndarray, " row"]:
        """The place in the study order of each row of the source range."""
        return study_positions(self.num_rows, self.seed)[self.first_row : self.first_row + self.stop - self.start]


def plan_runs(
    folder: Path, files: list[Source], seed: int, wanted: tuple[tuple[int, int], ...], run_rows: int
) -> list[RunTask]:
    """The runs that hold the wanted stretches of the study order; their ranges keep to the chunks of each file."""
    num_rows, offset = sum(source.rows for source in files), 0
    runs: list[RunTask] = []
    for source in files:
        for start in range(0, source.rows, run_rows):
            run = RunTask(
                file=folder / f"run-{len(runs):06d}.arrow",
                source=Path(source.path),
                start=start,
                stop=min(start + run_rows, source.rows),
                first_row=offset + start,
                num_rows=num_rows,
                seed=seed,
                wanted=wanted,
            )
            runs.append(run)
        offset += source.rows
    return runs


def write_run(task: RunTask, schema: pa.Schema) -> int:
    """Write one run, uncompressed so that it can be mapped, or keep the whole one that is there.

    Returns:
        The edge pixels that were filled in its rows.

    Raises:
        UserError: A source row cannot be trained on.
    """
    if (filled := _filled_edges_of_whole_run(task.file)) is not None:
        return filled
    positions = task.positions()
    rows = np.flatnonzero(_within(positions, task.wanted))
    place = np.argsort(np.argsort(positions[rows]))
    filled = 0
    with open_spectra(task.source) as spectra:
        flux, error = (np.empty((len(rows), spectra.num_pixels), np.float32) for _ in range(2))
        done = 0
        for start, stop in _stretches(task.start + rows):
            for _, flux_piece, error_piece, filled_piece in checked_pieces(spectra, start, stop):
                at = place[done : done + len(flux_piece)]
                flux[at], error[at] = flux_piece, error_piece
                filled += filled_piece
                done += len(flux_piece)
        order = np.argsort(place)
        params = spectra.read_params(task.start, task.stop).iloc[rows[order]]
    table = spectra_table(positions[rows[order]], flux, error, params_table(params, schema, task.source), schema)
    checksum = Checksum()
    checksum.update(table)
    footer = {CHECKSUM: checksum.hexdigest().encode(), FILLED_EDGES: str(filled).encode()}
    table = table.replace_schema_metadata(footer)
    with published(task.file) as temporary, pa.ipc.new_file(temporary, table.schema) as writer:
        writer.write_table(table)
    return filled


def _filled_edges_of_whole_run(path: Path) -> int | None:
    try:
        with pa.memory_map(str(path)) as file:
            table = pa.ipc.open_file(file).read_all()
            checksum = Checksum()
            checksum.update(table)
            footer = table.schema.metadata
            return int(footer[FILLED_EDGES]) if footer[CHECKSUM].decode() == checksum.hexdigest() else None
    except (OSError, pa.ArrowException):
        return None


def _within(positions: Int64[ndarray, " row"], wanted: tuple[tuple[int, int], ...]) -> Bool[ndarray, " row"]:
    chosen = np.zeros(len(positions), dtype=bool)
    for first, last in wanted:
        chosen |= (positions >= first) & (positions < last)
    return chosen


def _stretches(rows: Int64[ndarray, " row"]) -> Iterator[tuple[int, int]]:
    """Increasing rows as ranges of neighbours: all of a chunk at once, or single rows where few are wanted."""
    breaks = np.flatnonzero(np.diff(rows) > 1) + 1
    for part in np.split(rows, breaks):
        if len(part):
            yield int(part[0]), int(part[-1]) + 1


def run_groups(runs: list[Path], first_row: int, num_rows: int, schema: pa.Schema) -> Iterator[tuple[pa.Table, int]]:
    """The row groups of a shard of the shuffled split, from the runs.

    Args:
        runs: All runs.
        first_row: The shard's first row in the study order.
        num_rows: Its rows.
        schema: Its columns.

    Yields:
        Row groups as ``source_groups`` does; their filled pixels are counted in the first pass, so 0 here.
    """
    stop = first_row + num_rows
    for first in range(first_row, stop, RUN_ROWS):
        table = _gather(runs, first, min(first + RUN_ROWS, stop), schema)
        for start in range(0, len(table), ROW_GROUP_ROWS):
            yield table.slice(start, ROW_GROUP_ROWS), 0


def _gather(runs: list[Path], first: int, last: int, schema: pa.Schema) -> pa.Table:
    """Rows ``first`` to ``last`` of the study order, each from the one run that has it."""
    pixels = schema.field(FLUX).type.shape[0]
    flux, error = (np.empty((last - first, pixels), np.float32) for _ in range(2))
    params = []
    for path in runs:
        with pa.memory_map(str(path)) as file:
            table = pa.ipc.open_file(file).read_all()
            row_ids = column_values(table, ROW_ID)
            start, stop = np.searchsorted(row_ids, [first, last])
            if start == stop:
                continue
            part = table.slice(start, stop - start)
            at = row_ids[start:stop] - first
            flux[at], error[at] = column_values(part, FLUX), column_values(part, ERROR)
            params.append(part.drop_columns([FLUX, ERROR]).replace_schema_metadata())
    others = pa.concat_tables(params)
    others = others.take(np.argsort(column_values(others, ROW_ID)))
    return spectra_table(np.arange(first, last), flux, error, others, schema)
