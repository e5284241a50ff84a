"""The HDF5 layout of PFS spectra: open, validate, read row ranges (`hdf5_writer` writes it).

The layout is that of the PFS simulator's own dataset writer: a shared wavelength grid, 64-bit flux and error of shape
(spectra, pixels), and a pandas table of parameters (``format="table"`` or ``"fixed"``) with one row a spectrum.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import h5py
import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray

from scaling.data.hdf5.readahead import ask_for_rows
from scaling.data.spectra import fill_edges
from scaling.errors import UserError

WAVE = "spectrumdataset/wave"
WAVE_EDGES = "spectrumdataset/wave_edges"
FLUX, ERROR, MASK = (f"dataset/arrays/{name}/value" for name in ("flux", "error", "mask"))
WAVE_PER_SPECTRUM = "dataset/arrays/wave/value"
PARAMS = "dataset/params"
TAG = "simulation"
FINGERPRINT_ROWS = 16
WAVE_TOLERANCE = 1e-6
"""Å; grids closer than this are the same."""
PIECE_ROWS = 512
"""Rows given together: 16 MiB of float64 at 4096 pixels."""
BLOCK_ROWS = 128
"""Rows read and rounded together: few enough to be still in the processor's cache when they are rounded."""
PIECES_AHEAD = 2
"""Pieces that the disk is asked for before they are read."""
TABLE_ROWS = 65536
"""Rows of a parameter table read together."""


class SpectraFile:
    """An open file of spectra; a context manager.

    Attributes:
        path: The file.
        file: The same, as h5py has it open.
        wave: Pixel centres in vacuum Å, (pixels,) float64.
        num_rows: Number of spectra.
        num_pixels: Number of pixels of each.
        chunk_rows: Rows stored together on disk: ranges aligned to it are read without waste. 1 if contiguous.
        filled_edges: Edge pixels with a NaN error that reading has filled so far.
        tag: What ``write_spectra`` was told the spectra are; None in other files.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.filled_edges = 0
        self.file = _open_hdf5(path)
        try:
            self._check_layout()
        except BaseException:
            self.file.close()
            raise
        self._flux, self._error = (_open_array(self.file, name) for name in (FLUX, ERROR))
        self.num_rows, self.num_pixels = self._flux.shape
        self.chunk_rows: int = self._flux.chunks[0] if self._flux.chunks else 1
        tag = self.file.attrs.get(TAG)
        self.tag = None if tag is None else str(tag)

    def __enter__(self) -> SpectraFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.file.close()

    def _check_layout(self) -> None:
        if WAVE_PER_SPECTRUM in self.file:
            raise UserError(
                f"{self.path}: a wavelength grid for each spectrum ({WAVE_PER_SPECTRUM}): resample to one grid"
            )
        needed = {name: self.file.get(name) for name in (WAVE, FLUX, ERROR)}
        params = needed[f"{PARAMS}/table"] = self.file.get(f"{PARAMS}/table", self.file.get(f"{PARAMS}/axis1"))
        if missing := [name for name, found in needed.items() if not isinstance(found, h5py.Dataset)]:
            raise UserError(f"{self.path}: no {', '.join(missing)}: give a file in the PFS dataset layout")
        flux, error = needed[FLUX].shape, needed[ERROR].shape
        if len(flux) != 2 or flux != error or 0 in flux or flux[1] < 2:
            raise UserError(f"{self.path}: flux is {flux} and error is {error}: expected one shape (spectra, pixels)")
        for found, length in ((needed[WAVE], flux[1]), (params, flux[0])):
            if found.shape != (length,):
                name = found.name.lstrip("/")
                raise UserError(f"{self.path}: {name} is {found.shape}: flux is {flux}, so expected ({length},)")
        self.wave: Float[ndarray, " pixel"] = needed[WAVE][:].astype(np.float64)
        if not (np.diff(self.wave) > 0).all():
            raise UserError(f"{self.path}: {WAVE} does not increase from pixel to pixel: expected a grid in Å")

    def pieces(
        self, start: int, stop: int, rows: int = PIECE_ROWS
    ) -> Iterator[tuple[int, Float[ndarray, "row pixel"], Float[ndarray, "row pixel"]]]:
        """Flux and error of rows ``start`` to ``stop``, ``rows`` at a time, as ``read`` gives them.

        Memory is that of one piece, however large the file's chunks are (compressed ones are held whole).

        Yields:
            The piece's first row in the file, and two (rows, pixels) float32 arrays that are the caller's to keep.

        Raises:
            UserError: Rows cannot be read.
        """
        buffer = np.empty((min(BLOCK_ROWS, stop - start), self.num_pixels))
        asked = start
        for first in range(start, stop, rows):
            last = min(first + rows, stop)
            ahead = min(last + PIECES_AHEAD * rows, stop)
            for array in (self._flux, self._error):
                if asked < ahead:
                    ask_for_rows(array, asked, ahead)
            asked = ahead
            flux, error = (self._read_float32(array, first, last, buffer) for array in (self._flux, self._error))
            self.filled_edges += fill_edges(error)
            yield first, flux, error

    def read(self, start: int, stop: int) -> tuple[Float[ndarray, "row pixel"], Float[ndarray, "row pixel"]]:
        """Flux and error of rows ``start`` to ``stop``, rounded once to float32, NaN errors at the edges filled.

        Returns:
            Two (stop - start, pixels) float32 arrays.

        Raises:
            UserError: The rows cannot be read.
        """
        flux, error = (np.empty((stop - start, self.num_pixels), np.float32) for _ in range(2))
        for first, piece_flux, piece_error in self.pieces(start, stop):
            rows = slice(first - start, first - start + len(piece_flux))
            flux[rows], error[rows] = piece_flux, piece_error
        return flux, error

    def _read_float32(
        self, array: h5py.Dataset, start: int, stop: int, buffer: Float[ndarray, "space pixel"]
    ) -> Float[ndarray, "row pixel"]:
        rounded = np.empty((stop - start, self.num_pixels), np.float32)
        for first in range(start, stop, len(buffer)):
            last = min(first + len(buffer), stop)
            block = buffer[: last - first]
            try:
                array.read_direct(block, np.s_[first:last])
            except (OSError, RuntimeError) as error:
                raise UserError(
                    f"{self.path}: rows {first} to {last - 1} cannot be read ({error}): copy the file again"
                ) from error
            with np.errstate(over="ignore"):  # a value beyond float32 becomes infinite, which `check_rows` reports
                rounded[first - start : last - start] = block
        return rounded

    def read_params(self, start: int = 0, stop: int | None = None) -> pd.DataFrame:
        """Rows ``start`` to ``stop`` of the parameter table, indexed from 0.

        Raises:
            UserError: The table was not written by pandas, or cannot be read.
        """
        try:
            frame = pd.read_hdf(self.path, PARAMS, start=start, stop=stop)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:  # PyTables' HDF5ExtError is a RuntimeError
            reason = str(error).strip().splitlines()[-1]
            raise UserError(f"{self.path}: {PARAMS} is not a pandas table ({reason}): write it with to_hdf") from error
        return frame.reset_index(drop=True)

    @functools.cached_property
    def params(self) -> pd.DataFrame:
        """The whole parameter table, one row a spectrum."""
        return self.read_params()

    def fingerprint(self) -> str:
        """A SHA-256 that tells this file's content from another's without reading all of it.

        It covers the shape, the wavelength grid, the whole parameter table, and flux and error of 16 evenly spaced rows;
        a change confined to other rows goes unnoticed.
        """
        digest = hashlib.sha256(repr(self._flux.shape).encode())
        digest.update(self.wave.tobytes())
        params = self.file[PARAMS]
        for name in ["table"] if "table" in params else sorted(params):
            for piece in _slabs(params[name]):
                digest.update(piece)
        for row in np.unique(np.linspace(0, self.num_rows - 1, FINGERPRINT_ROWS).astype(int)):
            digest.update(self._flux[row].tobytes())
            digest.update(self._error[row].tobytes())
        return digest.hexdigest()


def _slabs(array: h5py.Dataset) -> Iterator[bytes]:
    """The bytes of an array, some rows at a time; of pandas' pickled objects, which have no fixed size, their content."""
    for start in range(0, len(array), TABLE_ROWS):
        piece = array[start : start + TABLE_ROWS]
        yield b"".join(np.asarray(item).tobytes() for item in piece.flat) if piece.dtype == object else piece.tobytes()


def _open_array(file: h5py.File, name: str) -> h5py.Dataset:
    """An array; a compressed one with room in memory for the chunks of a row: else each piece would decode them again."""
    array = file[name]
    if not array.chunks or not array.id.get_create_plist().get_nfilters():
        return array
    across = math.ceil(array.shape[1] / array.chunks[1])
    room = across * math.prod(array.chunks) * array.dtype.itemsize
    del array  # opened twice, it would keep the room it has
    access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
    access.set_chunk_cache(521, room, 1.0)
    return h5py.Dataset(h5py.h5d.open(file.id, name.encode(), access))


def _open_hdf5(path: Path) -> h5py.File:
    if path.is_dir():
        raise UserError(f"{path} is a folder: name the HDF5 file in it, for example {path / 'dataset.h5'}")
    if not path.is_file():
        raise UserError(f"{path}: no such file: name an HDF5 file of spectra")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise UserError(f"{path} is not an HDF5 file, or is cut short ({error}): copy it again") from error


def open_spectra(path: Path) -> SpectraFile:
    """Open a file of spectra for reading and check its layout.

    Raises:
        UserError: It is not such a file; the message says what is missing.
    """
    return SpectraFile(Path(path))
