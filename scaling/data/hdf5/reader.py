"""Reader of the HDF5 layout of PFS spectra (written by `scaling.data.hdf5.writer`): opens, validates and reads files.

The layout is that of the PFS simulator's own dataset writer: a shared wavelength grid, flux and error of shape (spectra,
pixels), and a pandas table of parameters (``format="table"`` or ``"fixed"``) with one row per spectrum.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from jaxtyping import Float, Float32, Int64
from numpy import ndarray

from scaling.data.hdf5.guard import check_attributes, find_array, no_code_from_pickles, reading, reason
from scaling.data.hdf5.readahead import ReadAhead
from scaling.data.spectra import fill_edges
from scaling.errors import UserError

WAVE, WAVE_EDGES = "spectrumdataset/wave", "spectrumdataset/wave_edges"
FLUX_ARRAY, ERROR_ARRAY, MASK_ARRAY = (f"dataset/arrays/{name}/value" for name in ("flux", "error", "mask"))
WAVE_PER_SPECTRUM = "dataset/arrays/wave/value"
PARAMS = "dataset/params"
TAG = "simulation"
FINGERPRINT_ROWS = 16
WAVE_TOLERANCE = 1e-6
"""Å; grids that differ by less are considered equal."""
BLOCK_ROWS = 512
"""Rows per block: 16 MiB of float64 at 4096 pixels."""
ROUNDED_ROWS = 128
"""Rows read and rounded together: few enough to stay in the processor's cache."""
ROWS_AHEAD = 2 * BLOCK_ROWS
"""Rows of read-ahead."""
TABLE_ROWS = 65536
"""Rows of a parameter table read at a time."""
COMPRESSION = 1100
"""Maximum ratio of deflate: a header that promises more values than this times the stored bytes is damaged."""

Spectra = Float32[ndarray, "row pixel"]
Block = tuple[int, Spectra, Spectra]
"""The first row's number in the file, flux and error."""


class SpectraFile:
    """An open file of spectra; a context manager.

    Attributes:
        path: The file.
        file: The h5py file.
        wave: Pixel centres in vacuum Å, (pixels,) float64.
        num_rows: Number of spectra.
        num_pixels: Pixels per spectrum.
        chunk_rows: Rows per chunk on disk; reads aligned to it waste nothing. 1 if contiguous.
        filled_edges: Number of edge pixels with a NaN error that reading has filled so far.
        tag: The description of the spectra stored by ``write_spectra``; None in other files.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.filled_edges = 0
        self.file = _open_hdf5(path)
        try:
            with reading(path, "the layout"):
                self._check_layout()
                self._flux, self._error = (_open_array(self.file, name) for name in (FLUX_ARRAY, ERROR_ARRAY))
                tag = self.file.attrs.get(TAG)
        except BaseException:
            self.file.close()
            raise
        self.num_rows, self.num_pixels = self._flux.shape
        self.chunk_rows: int = self._flux.chunks[0] if self._flux.chunks else 1
        self.tag = tag if isinstance(tag, str) else None

    def __enter__(self) -> SpectraFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def _check_layout(self) -> None:
        if find_array(self.file, WAVE_PER_SPECTRUM) is not None:
            raise UserError(f"{self.path}: each spectrum has a grid ({WAVE_PER_SPECTRUM}): resample to one grid")
        table, axis = f"{PARAMS}/table", f"{PARAMS}/axis1"  # in pandas' two formats
        params = axis if find_array(self.file, table) is None and find_array(self.file, axis) is not None else table
        names = (WAVE, FLUX_ARRAY, ERROR_ARRAY, params)
        found = {name: array for name in names if (array := find_array(self.file, name)) is not None}
        if missing := ", ".join(name for name in names if name not in found):
            raise UserError(f"{self.path}: no {missing}: give a file that has these arrays, in the PFS dataset layout")
        for name in names[:3]:
            if found[name].dtype.kind not in "iuf":
                raise UserError(f"{self.path}: {name} is {found[name].dtype}: expected real numbers")
        wave, flux, error, rows = (array.shape for array in found.values())
        if flux is None or len(flux) != 2 or flux != error or 0 in flux or flux[1] < 2:
            raise UserError(f"{self.path}: flux is {flux} and error is {error}: expected one shape (spectra, pixels)")
        for name, shape, length in ((WAVE, wave, flux[1]), (params, rows, flux[0])):
            if shape != (length,):
                raise UserError(f"{self.path}: {name} is {shape}: flux is {flux}, so expected ({length},)")
        if max(flux) > COMPRESSION * self.path.stat().st_size:
            raise UserError(f"{self.path}: flux is {flux}: the file is too small for that, copy it again")
        self.wave: Float[ndarray, " pixel"] = found[WAVE][:].astype(np.float64)
        if not (np.isfinite(self.wave).all() and (np.diff(self.wave) > 0).all()):
            fault = "is not finite or does not increase from pixel to pixel"
            raise UserError(f"{self.path}: {WAVE} {fault}: expected a grid in Å")

    def blocks(self, start: int, stop: int, rows: int = BLOCK_ROWS, fill: bool = True) -> Iterator[Block]:
        """Yield rows ``start`` to ``stop`` in blocks of ``rows``, rounded once to float32.

        NaN errors at the edges are filled, and counted in `filled_edges`. The caller owns the arrays. Memory is one block,
        however large the file's chunks are (compressed ones are held whole).

        Raises:
            UserError: Rows cannot be read.
        """
        return self._blocks([(first, min(first + rows, stop)) for first in range(start, stop, rows)], fill)

    def _blocks(self, ranges: list[tuple[int, int]], fill: bool) -> Iterator[Block]:
        arrays = (self._flux, self._error)
        ahead = [ReadAhead(array) for array in arrays]
        rows = min(ROUNDED_ROWS, max((stop - start for start, stop in ranges), default=0))
        buffers = [np.empty((rows, self.num_pixels), array.dtype.newbyteorder("=")) for array in arrays]
        asked = rows_ahead = 0
        for index, (start, stop) in enumerate(ranges):
            with reading(self.path, f"rows {start} to {stop - 1}"):
                while asked < len(ranges) and (asked < index + 2 or rows_ahead < ROWS_AHEAD):
                    for array in ahead:
                        array.ask(*ranges[asked])
                    rows_ahead += ranges[asked][1] - ranges[asked][0]
                    asked += 1
                flux, error = (
                    _read_float32(array, start, stop, buffer) for array, buffer in zip(arrays, buffers, strict=True)
                )
            rows_ahead -= stop - start
            if fill:
                self.filled_edges += fill_edges(error)
            yield start, flux, error

    def read(self, start: int, stop: int) -> tuple[Spectra, Spectra]:
        """Flux and error of rows ``start`` to ``stop``, as from ``blocks`` but concatenated."""
        return self.read_rows(np.arange(start, stop))

    def read_rows(self, rows: Int64[ndarray, " row"], fill: bool = True) -> tuple[Spectra, Spectra]:
        """Flux and error of any rows, in the given order, processed as in ``blocks``.

        Rows are read in file order, adjacent ones together, each row once, with a read-ahead of 1024 rows.

        Raises:
            ValueError: The file has no such row.
        """
        if len(rows) and not 0 <= rows.min() <= rows.max() < self.num_rows:
            raise ValueError(f"rows {rows.min()} to {rows.max()}: {self.path} has {self.num_rows}")
        flux, error = (np.empty((len(rows), self.num_pixels), np.float32) for _ in range(2))
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        for first, block_flux, block_error in self._blocks(_row_ranges(ordered), fill):
            low, high = np.searchsorted(ordered, [first, first + len(block_flux)])
            places, within = order[low:high], ordered[low:high] - first
            flux[places], error[places] = block_flux[within], block_error[within]
        return flux, error

    def read_params(self, start: int = 0, stop: int | None = None) -> pd.DataFrame:
        """Read rows ``start`` to ``stop`` of the parameter table, indexed from 0.

        Raises:
            UserError: The table was not written by pandas, cannot be read, or has columns without unique names.
        """
        with reading(self.path, PARAMS, "write a pandas DataFrame with to_hdf"), no_code_from_pickles():
            check_attributes(self.file, PARAMS)
            frame = pd.read_hdf(self.path, PARAMS, start=start, stop=stop)
            if not isinstance(frame, pd.DataFrame):
                raise TypeError(f"a pandas {type(frame).__name__}")
            if len(frame) != len(range(*slice(start, stop).indices(self.num_rows))):
                raise ValueError(f"{len(frame)} rows where {self.num_rows} spectra are")
        if odd := [name for name in frame if not isinstance(name, str) or not name.isprintable()]:
            raise UserError(f"{self.path}: {PARAMS} has a column {odd[0]!a}: give each column one name, in UTF-8")
        if len(twice := frame.columns[frame.columns.duplicated()]):
            raise UserError(f"{self.path}: {PARAMS} has two columns {twice[0]!r}: rename one")
        return frame.reset_index(drop=True)

    def params_rows(self, rows: Int64[ndarray, " row"]) -> pd.DataFrame:
        """Any rows, in the given order, as from ``read_params``; from pandas' table format only these rows are read."""
        if find_array(self.file, f"{PARAMS}/table") is None:
            return self.params.iloc[rows].reset_index(drop=True)
        self.read_params(0, 1)  # checks the columns
        ordered = np.unique(rows)
        with reading(self.path, PARAMS, "write a pandas DataFrame with to_hdf"), no_code_from_pickles():
            frame = pd.read_hdf(self.path, PARAMS, where=ordered)
        return frame.iloc[np.searchsorted(ordered, rows)].reset_index(drop=True)

    @functools.cached_property
    def params(self) -> pd.DataFrame:
        """The whole parameter table, one row per spectrum."""
        return self.read_params()

    def fingerprint(self) -> str:
        """A SHA-256 that distinguishes this file's content from others without reading all of it.

        It covers the shape, the wavelength grid, the whole parameter table, and flux and error of 16 evenly spaced rows;
        a change confined to other rows goes unnoticed.
        """
        digest = hashlib.sha256(repr(self._flux.shape).encode())
        digest.update(self.wave.tobytes())
        with reading(self.path, "the content"):
            params = self.file[PARAMS]
            for name in ["table"] if "table" in params else sorted(params):
                if (array := find_array(self.file, f"{PARAMS}/{name}")) is None:
                    continue
                for start in range(0, len(array), TABLE_ROWS):
                    rows = array[start : start + TABLE_ROWS]
                    # pandas' pickled objects have no fixed size, so their contents are hashed
                    for part in map(np.asarray, rows.flat) if rows.dtype == object else [rows]:
                        digest.update(part.tobytes())
            for row in np.unique(np.linspace(0, self.num_rows - 1, FINGERPRINT_ROWS).astype(int)):
                digest.update(self._flux[row].tobytes())
                digest.update(self._error[row].tobytes())
        return digest.hexdigest()


def _row_ranges(rows: Int64[ndarray, " row"]) -> list[tuple[int, int]]:
    """Split sorted rows into contiguous ranges of at most one block."""
    unique = np.unique(rows)
    starts = unique[np.diff(unique, prepend=-2) > 1].tolist()
    stops = (unique[np.diff(unique, append=2**62) > 1] + 1).tolist()
    return [
        (first, min(first + BLOCK_ROWS, stop))
        for start, stop in zip(starts, stops, strict=True)
        for first in range(start, stop, BLOCK_ROWS)
    ]


def _read_float32(array: h5py.Dataset, start: int, stop: int, buffer: ndarray) -> Spectra:
    """Read rows and round them once. A value beyond float32 becomes infinite, which `check_rows` reports."""
    rounded = np.empty((stop - start, array.shape[1]), np.float32)
    for first in range(start, stop, len(buffer)):
        rows = buffer[: stop - first]
        array.read_direct(rows, np.s_[first : first + len(rows)])
        with np.errstate(over="ignore"):
            rounded[first - start : first - start + len(rows)] = rows
    return rounded


def _open_array(file: h5py.File, name: str) -> h5py.Dataset:
    """Open an array; if compressed, with a chunk cache for one row of chunks, so that no chunk is decoded twice."""
    array = file[name]
    if not array.chunks or not array.id.get_create_plist().get_nfilters():
        return array
    across = math.ceil(array.shape[1] / array.chunks[1])
    room = across * math.prod(array.chunks) * array.dtype.itemsize
    del array  # a second handle would keep the current chunk cache
    access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
    access.set_chunk_cache(521, room, 1.0)
    return h5py.Dataset(h5py.h5d.open(file.id, name.encode(), access))


def _open_hdf5(path: Path) -> h5py.File:
    if path.is_dir():
        raise UserError(f"{path} is a folder: name the HDF5 file in it, for example {path / 'dataset.h5'}")
    if not path.exists():
        raise UserError(f"{path}: no such file: name an HDF5 file of spectra")
    if not path.is_file():  # opening a FIFO would block
        raise UserError(f"{path} is not a regular file: name an HDF5 file of spectra")
    try:
        return h5py.File(path, "r")
    except Exception as error:
        raise UserError(f"{path} is not an HDF5 file, or is cut short ({reason(error)}): copy it again") from error


def open_spectra(path: Path) -> SpectraFile:
    """Open a file of spectra for reading and check its layout; raises a `UserError` that says what is missing."""
    return SpectraFile(Path(path))
