"""HDF5 source files that are read as one sequence: consistency checks, and the location of each row."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Float64, Int64
from numpy import ndarray

from scaling.data.hdf5.columns import shard_type
from scaling.data.hdf5.reader import FLUX_ARRAY, WAVE_TOLERANCE, SpectraFile, open_spectra
from scaling.data.shards.manifest import Source
from scaling.data.spectra import ERROR, FLUX, ROW_ID
from scaling.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Files whose rows are numbered consecutively, and the information from their headers.

    Attributes:
        files: In row order.
        wave: The common grid, vacuum Å.
        schema: The columns of a row: ``row_id``, flux, error and the parameters.
        chunk_rows: Per file, rows that must be decoded together: those of a compressed chunk, 1 if uncompressed.
        modified: Per file, its modification time in ns.
    """

    files: tuple[Source, ...]
    wave: Float64[ndarray, " pixel"]
    schema: pa.Schema
    chunk_rows: tuple[int, ...]
    modified: tuple[int, ...]

    @property
    def num_rows(self) -> int:
        """Total number of rows."""
        return sum(source.rows for source in self.files)

    def ranges(self, first: int, last: int) -> Iterator[tuple[Path, int, int]]:
        """Locations of rows ``first`` to ``last``, as (file, start, stop) in row order."""
        offset = 0
        for source in self.files:
            start, stop = max(first - offset, 0), min(last - offset, source.rows)
            if start < stop:
                yield Path(source.path), start, stop
            offset += source.rows

    def require_unchanged(self) -> None:
        """Check that no file was written or replaced since it was inspected.

        Raises:
            UserError: A file has changed, or is gone.
        """
        for source, modified in zip(self.files, self.modified, strict=True):
            try:
                now = os.stat(source.path)
            except OSError as error:
                raise UserError(f"{source.path}: is gone ({error.strerror}): put it back and run it again") from error
            if (now.st_size, now.st_mtime_ns) != (source.size, modified):
                raise UserError(
                    f"{source.path}: was changed while it was read: convert it into another folder once it is finished"
                )

    def places(self, rows: Int64[ndarray, " row"]) -> Iterator[tuple[Path, Int64[ndarray, " some"], ndarray]]:
        """Locations of rows in any order, as (file, positions in ``rows``, row numbers in the file)."""
        edges = np.cumsum([0, *(source.rows for source in self.files)])
        which = np.searchsorted(edges, rows, side="right") - 1
        for at, source in enumerate(self.files):
            places = np.flatnonzero(which == at)
            if len(places):
                yield Path(source.path), places, rows[places] - edges[at]


def inspect_sources(paths: Iterable[Path]) -> Sources:
    """Check files for consistency, by their headers.

    Raises:
        UserError: There is no file, one cannot be used, or two are inconsistent.
    """
    files: list[Source] = []
    kinds: dict[str, list[pa.DataType]] = {}
    chunk_rows: list[int] = []
    modified: list[int] = []
    first: SpectraFile | None = None
    for path in (Path(os.path.abspath(file)) for file in paths):
        with open_spectra(path) as spectra:
            first = first or spectra
            _require_same_grid(first, spectra)
            _collect_columns(kinds, first, spectra)
            found, fingerprint = path.stat(), spectra.fingerprint()
            files.append(Source(path=str(path), rows=spectra.num_rows, size=found.st_size, fingerprint=fingerprint))
            modified.append(found.st_mtime_ns)
            compressed = spectra.file[FLUX_ARRAY].id.get_create_plist().get_nfilters() > 0
            chunk_rows.append(spectra.chunk_rows if compressed else 1)
    if first is None:
        raise UserError("no source file: give at least one")
    tensor = pa.fixed_shape_tensor(pa.float32(), [first.num_pixels])
    fields = [pa.field(ROW_ID, pa.int64()), pa.field(FLUX, tensor), pa.field(ERROR, tensor)]
    fields += [pa.field(name, _common_kind(found)) for name, found in kinds.items()]
    return Sources(
        files=tuple(files),
        wave=first.wave,
        schema=pa.schema(fields),
        chunk_rows=tuple(chunk_rows),
        modified=tuple(modified),
    )


def _require_same_grid(first: SpectraFile, other: SpectraFile) -> None:
    if first.num_pixels != other.num_pixels or np.abs(first.wave - other.wave).max() > WAVE_TOLERANCE:
        grids = [f"{file.path} ({file.num_pixels} pixels from {file.wave[0]:.3f} Å)" for file in (first, other)]
        raise UserError(f"{grids[0]} and {grids[1]} have different pixel grids: convert them into separate folders")


def _collect_columns(kinds: dict[str, list[pa.DataType]], first: SpectraFile, spectra: SpectraFile) -> None:
    """Add the Arrow type of each parameter column of a file to ``kinds``."""
    head = spectra.read_params(0, 1)
    found = {str(name): shard_type(spectra.path, column) for name, column in head.items()}
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
