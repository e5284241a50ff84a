"""Contents and problems of HDF5 files of spectra, one by one and as a set."""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from scaling.data.hdf5.columns import HEADER, ColumnSummary, column_problems, shard_type, summarise_column
from scaling.data.hdf5.guard import find, find_array, reading, shown
from scaling.data.hdf5.leaks import find_leaks
from scaling.data.hdf5.reader import MASK_ARRAY, WAVE_TOLERANCE, SpectraFile, open_spectra
from scaling.data.spectra import SNR_DEFINITION, bad_rows, snr_percentiles, spectrum_snr
from scaling.errors import UserError

ARRAYS = "dataset/arrays"
RANGES = 16
"""Row ranges sampled from a large file; rows that were never written are usually adjacent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """The contents of a file of spectra; for a file that cannot be opened as one, only the path and the reason.

    Attributes:
        wave_range: First and last pixel centre, vacuum Å.
        checked_rows: Number of rows whose flux, error and mask were read; the attributes below are based on them.
        snr_column_median: Median of the parameter table's own ``snr`` column, over all rows.
        masked_pixels: Pixels with a non-zero mask; None without a mask. ``masked_rows`` have at least one such pixel.
        problems: What would stop a conversion or spoil a study, one sentence each.
    """

    path: str
    rows: int = 0
    pixels: int = 0
    wave_range: tuple[float, float] | None = None
    arrays: dict[str, str] = field(default_factory=dict)
    columns: list[ColumnSummary] = field(default_factory=list)
    checked_rows: int = 0
    snr: dict[str, float] = field(default_factory=dict)
    snr_definition: str = SNR_DEFINITION
    snr_column_median: float | None = None
    masked_pixels: int | None = None
    masked_rows: int | None = None
    filled_edges: int = 0
    problems: list[str]

    def to_text(self) -> str:
        """The description as plain text."""
        lines = [self.path]
        if self.wave_range:
            low, high = self.wave_range
            lines.append(f"  {self.rows} spectra of {self.pixels} pixels, {low:.2f} to {high:.2f} Å (vacuum)")
        lines += [f"  {name}: {text}" for name, text in self.arrays.items()]
        if self.wave_range:
            own = "" if self.snr_column_median is None else f"; median of the column snr: {self.snr_column_median:.3g}"
            masked = "no mask" if self.masked_pixels is None else f"{self.masked_pixels} in {self.masked_rows} spectra"
            lines += [
                f"  read: {self.checked_rows} of {self.rows} spectra; of these:",
                f"  SNR ({self.snr_definition}): {format_percentiles(self.snr)}{own}",
                f"  bad pixels (mask not 0): {masked}",
                f"  NaN errors in the first or last pixel: {self.filled_edges} (filled from the neighbour)",
                *(HEADER, *(column.to_text() for column in self.columns)),
            ]
        lines += [f"  PROBLEM: {problem}" for problem in self.problems] or ["  no problems found"]
        return "\n".join(lines)


def format_percentiles(percentiles: dict[str, float]) -> str:
    """Format percentiles on one line, such as ``5 %: 3.7, 50 %: 8.2``."""
    return ", ".join(f"{name} %: {value:.3g}" for name, value in percentiles.items()) or "unknown"


def describe(path: Path, max_rows: int = 4096) -> Description:
    """Describe a file from at most ``max_rows`` spectra, of a larger file in 16 evenly spaced ranges to its end.

    Raises:
        UserError: It is not intended as a file of spectra. A damaged file of spectra is described by its problem instead.
    """
    try:
        spectra = open_spectra(path)
    except UserError as error:
        arrays = _arrays_of_damaged(path)
        if arrays is None:
            raise
        return Description(path=str(path), arrays=arrays, problems=[str(error)])
    with spectra:
        try:
            with reading(path, "the list of arrays"):
                found = _find_arrays(spectra.file)
                arrays, problems = _in_words(found), _storage_problems(found)
        except UserError as error:
            arrays, problems = {}, [str(error)]
        sample, faults = _sample(spectra, max_rows)
        table, mistakes = _describe_params(spectra)
        return Description(
            path=str(path),
            rows=spectra.num_rows,
            pixels=spectra.num_pixels,
            wave_range=(float(spectra.wave[0]), float(spectra.wave[-1])),
            arrays=arrays,
            filled_edges=spectra.filled_edges,
            problems=problems + faults + mistakes,
            **sample,
            **table,
        )


def _describe_params(spectra: SpectraFile) -> tuple[dict[str, Any], list[str]]:
    """Fields of a `Description` from the parameter table, and the table's problems."""
    try:
        params = spectra.params
    except UserError as error:
        return {}, [str(error)]
    columns, problems = [], []
    for name, column in params.items():
        columns.append(summarise_column(str(name), column))
        try:
            shard_type(spectra.path, column)
        except UserError as error:
            problems.append(str(error))
        problems += column_problems(str(name), column)
    has_snr = any(column.name == "snr" and column.min is not None for column in columns)
    return {"columns": columns, "snr_column_median": float(params["snr"].median()) if has_snr else None}, problems


def _sample(spectra: SpectraFile, max_rows: int) -> tuple[dict[str, Any], list[str]]:
    """Fields of a `Description` from a sample of spectra, and their problems, one sentence per kind."""
    mask, read, snr, masked, unreadable = None, 0, [], [], []
    bad: dict[str, list[int]] = defaultdict(list)
    with contextlib.suppress(UserError), reading(spectra.path, MASK_ARRAY):  # reported with the other arrays
        mask = find_array(spectra.file, MASK_ARRAY)
    for start, stop in _sample_ranges(spectra.num_rows, max_rows):
        try:
            flux, error = spectra.read(start, stop)
            if mask is not None and mask.shape == (spectra.num_rows, spectra.num_pixels):
                with reading(spectra.path, f"{MASK_ARRAY} of rows {start} to {stop - 1}"):
                    masked += (mask[start:stop] != 0).sum(axis=1).tolist()
        except UserError as mistake:
            unreadable.append(str(mistake))
            continue
        read += len(flux)
        faults = bad_rows(flux, error)
        for kind, rows in faults.items():
            bad[kind] += (start + np.flatnonzero(rows)).tolist()
        usable = ~np.logical_or.reduce(list(faults.values()))
        snr += spectrum_snr(flux[usable], error[usable]).tolist()
    fields: dict[str, Any] = {"checked_rows": read, "snr": snr_percentiles(np.array(snr)) if snr else {}}
    if mask is not None:
        fields |= {"masked_pixels": sum(masked), "masked_rows": sum(map(bool, masked))}
    problems = [f"{kind} in row {rows[0]}, {len(rows)} such of {read} read" for kind, rows in bad.items() if rows]
    return fields, unreadable + problems


def _sample_ranges(rows: int, max_rows: int) -> list[tuple[int, int]]:
    """All rows, or evenly spaced ranges that include the first and the last row."""
    length = max(max_rows // RANGES, 1)
    if rows <= max_rows:
        return [(start, min(start + length, rows)) for start in range(0, rows, length)]
    return [(int(start), int(start) + length) for start in np.linspace(0, rows - length, RANGES)]


def _arrays_of_damaged(path: Path) -> dict[str, str] | None:
    """The arrays of a damaged file of spectra; None if the file was not intended as one."""
    if not path.is_file():
        return None
    with path.open("rb") as raw:
        if raw.read(8) != b"\x89HDF\r\n\x1a\n":
            return None
    try:
        with reading(path, "the arrays"), h5py.File(path, "r") as file:
            return _in_words(_find_arrays(file)) if find(file, ARRAYS) is not None else None
    except UserError:
        return {}


def _find_arrays(file: h5py.File) -> dict[str, h5py.Dataset]:
    """The arrays of a file by short name."""
    group = find(file, ARRAYS)
    names = group if isinstance(group, h5py.Group) else ()
    found = {name: find_array(file, f"{ARRAYS}/{name}/value") for name in names}
    return {name: array for name, array in found.items() if array is not None}


def _in_words(arrays: dict[str, h5py.Dataset]) -> dict[str, str]:
    """Type, shape and storage of each array, as text."""
    return {
        shown(name): f"{array.dtype} {array.shape}, {f'chunks {array.chunks}' if array.chunks else 'contiguous'}"
        + f", {array.compression}" * bool(array.compression)
        for name, array in arrays.items()
    }


def _storage_problems(arrays: dict[str, h5py.Dataset]) -> list[str]:
    """Arrays of inconsistent length, and flux or error never stored (an unstored mask is fine: it reads as 0, good)."""
    shape = arrays["flux"].shape
    problems = [
        f"array {shown(name)} has the shape {array.shape}, flux {shape}: expected {shape[0]} rows"
        for name, array in arrays.items()
        if (array.shape or ())[:1] != shape[:1]
    ]
    for name in ("flux", "error"):
        if ranges := _rows_never_stored(arrays[name]):
            what = f"{sum(stop - start for start, stop in ranges)} of {shape[0]} rows"
            first = f"first in rows {ranges[0][0]} to {ranges[0][1] - 1}"
            problems.append(f"{ARRAYS}/{name}/value was never written in {what}, {first}")
    return problems


def _rows_never_stored(array: h5py.Dataset) -> list[tuple[int, int]]:
    """Ranges of rows for which the file stores no bytes."""
    rows = len(array)
    if array.chunks is None:
        return [] if array.id.get_storage_size() else [(0, rows)]
    stored: Counter[int] = Counter()
    array.id.chunk_iter(lambda chunk: stored.update([chunk.chunk_offset[0]]))
    across = -(-array.shape[1] // array.chunks[1])
    whole = sorted(start for start, count in stored.items() if count >= across)
    starts = [0, *(start + array.chunks[0] for start in whole)]
    return [(start, stop) for start, stop in zip(starts, [*whole, rows], strict=True) if start < stop]


@dataclass(frozen=True, slots=True, kw_only=True)
class SetDescription:
    """Several files, such as the splits of one set; ``across`` lists problems between files, including leaks."""

    files: list[Description]
    across: list[str]

    @property
    def problems(self) -> list[str]:
        """All problems; those of a single file are prefixed with its path."""
        own = [f"{file.path}: {problem}" for file in self.files for problem in file.problems]
        return own + self.across

    def to_text(self) -> str:
        """The description as plain text."""
        together = [f"{len(self.files)} files together: {sum(file.rows for file in self.files)} spectra"]
        together += [f"  PROBLEM: {problem}" for problem in self.across] or ["  no further problems found"]
        return "\n".join([*(file.to_text() for file in self.files), *together])


def describe_set(paths: Iterable[Path], max_rows: int = 4096) -> SetDescription:
    """Describe several files as ``describe`` does, and as a set: differing grids or columns, and leaks."""
    files = [describe(path, max_rows) for path in paths]
    usable = [file for file in files if file.wave_range and file.columns]
    across = [problem for other in usable[1:] for problem in _differences(usable[0], other)]
    across += find_leaks([Path(file.path) for file in usable])
    return SetDescription(files=files, across=across)


def _differences(first: Description, other: Description) -> Iterator[str]:
    """Yield the differences in wavelength grid and parameter columns between two files."""
    with open_spectra(Path(first.path)) as one, open_spectra(Path(other.path)) as two:
        if one.wave.shape != two.wave.shape or np.abs(one.wave - two.wave).max() > WAVE_TOLERANCE:
            yield f"{first.path} and {other.path} have different wavelength grids"
    if odd := {column.name for column in first.columns} ^ {column.name for column in other.columns}:
        yield f"{first.path} and {other.path}: only one has the columns {', '.join(sorted(odd))}"
