"""The HDF5 layout of PFS spectra: open, validate, describe, read row ranges, write.

The layout is that of the PFS simulator's own dataset writer: a shared wavelength grid, 64-bit flux and error of shape
(spectra, pixels), and a pandas table of parameters with one row a spectrum.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import h5py
import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray

from scaling.errors import UserError

WAVE = "spectrumdataset/wave"
WAVE_EDGES = "spectrumdataset/wave_edges"
FLUX, ERROR, MASK = (f"dataset/arrays/{name}/value" for name in ("flux", "error", "mask"))
WAVE_PER_SPECTRUM = "dataset/arrays/wave/value"
PARAMS = "dataset/params"
TAG = "simulation"
FINGERPRINT_ROWS = 16
SNR_PERCENTILES = (5, 25, 50, 75, 95)
SNR_DEFINITION = "95th percentile over pixels of flux / error, as float32"


def spectrum_snr(flux: Float[ndarray, "row pixel"], error: Float[ndarray, "row pixel"]) -> Float[ndarray, " row"]:
    """Signal to noise of each spectrum: the 95th percentile of flux / error over its pixels.

    The order statistic nearest to the percentile, in float32: a partition of the pixels, without interpolation.
    """
    ratio = (flux / error).astype(np.float32, copy=False)
    rank = round(0.95 * (ratio.shape[1] - 1))
    ratio.partition(rank, axis=1)
    return ratio[:, rank].copy()


def snr_percentiles(snr: Float[ndarray, " row"]) -> dict[str, float]:
    """The 5th, 25th, 50th, 75th and 95th percentile of the spectra's SNR, by name."""
    values = np.percentile(snr.astype(np.float64), SNR_PERCENTILES)
    return {str(name): float(value) for name, value in zip(SNR_PERCENTILES, values, strict=True)}


def fill_edges(error: Float[ndarray, "row pixel"]) -> int:
    """Replace, in place, a NaN error in the first or last pixel by its neighbour's, as the original study does.

    Returns:
        The number of pixels filled.
    """
    filled = 0
    for edge, neighbour in ((0, 1), (-1, -2)):
        missing = np.isnan(error[:, edge])
        error[missing, edge] = error[missing, neighbour]
        filled += int(missing.sum())
    return filled


def row_problems(
    flux: Float[ndarray, "row pixel"], error: Float[ndarray, "row pixel"], first_row: int = 0
) -> list[str]:
    """What makes rows unusable, one sentence a kind, with the first such row and their number.

    Args:
        flux: Flux, (rows, pixels).
        error: Error with its edges filled, (rows, pixels).
        first_row: The first row's position in its file.
    """
    unwritten = ~flux.any(axis=1)
    kinds = {
        "flux is 0 in every pixel (never written)": unwritten,
        "flux is not finite": ~np.isfinite(flux).all(axis=1),
        "error is not finite (beyond the edge pixels)": ~np.isfinite(error).all(axis=1),
        "error is 0 or negative": (error <= 0).any(axis=1) & ~unwritten,
    }
    last_row = first_row + len(flux) - 1
    return [
        f"{kind} in row {first_row + int(bad.argmax())}, {int(bad.sum())} such among rows {first_row} to {last_row}"
        for kind, bad in kinds.items()
        if bad.any()
    ]


def check_rows(
    flux: Float[ndarray, "row pixel"], error: Float[ndarray, "row pixel"], path: Path, first_row: int = 0
) -> None:
    """Refuse rows that cannot be trained on.

    Args:
        flux: Flux, (rows, pixels).
        error: Error with its edges filled, (rows, pixels).
        path: The file they are from.
        first_row: The first row's position in it.

    Raises:
        UserError: A row was never written, or a flux or error is not finite, or an error is not positive.
    """
    if problems := row_problems(flux, error, first_row):
        raise UserError(f"{path}: {problems[0]}: mend or drop these rows in the source file")


class SpectraFile:
    """An open file of spectra; a context manager.

    Attributes:
        path: The file.
        wave: Pixel centres in vacuum Å, (pixels,) float64.
        num_rows: Number of spectra.
        num_pixels: Number of pixels of each.
        chunk_rows: Rows stored together on disk: ranges aligned to it are read without waste. 1 if contiguous.
        filled_edges: Edge pixels with a NaN error that ``read`` has filled so far.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.filled_edges = 0
        self._file = _open_hdf5(path)
        try:
            self._check_layout()
        except BaseException:
            self._file.close()
            raise
        self._flux, self._error = self._file[FLUX], self._file[ERROR]
        self.num_rows, self.num_pixels = self._flux.shape
        self.chunk_rows: int = self._flux.chunks[0] if self._flux.chunks else 1

    def __enter__(self) -> SpectraFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def _check_layout(self) -> None:
        if WAVE_PER_SPECTRUM in self._file:
            raise UserError(
                f"{self.path}: a wavelength grid for each spectrum ({WAVE_PER_SPECTRUM}): resample to one grid"
            )
        needed = (WAVE, FLUX, ERROR, f"{PARAMS}/table")
        if missing := [name for name in needed if not isinstance(self._file.get(name), h5py.Dataset)]:
            raise UserError(f"{self.path}: no {', '.join(missing)}: give a file in the PFS dataset layout")
        flux, error = self._file[FLUX].shape, self._file[ERROR].shape
        if len(flux) != 2 or flux != error or 0 in flux or flux[1] < 2:
            raise UserError(f"{self.path}: flux is {flux} and error is {error}: expected one shape (spectra, pixels)")
        for name, length in ((WAVE, flux[1]), (f"{PARAMS}/table", flux[0])):
            if self._file[name].shape != (length,):
                raise UserError(
                    f"{self.path}: {name} is {self._file[name].shape}: flux is {flux}, so expected ({length},)"
                )
        self.wave: Float[ndarray, " pixel"] = self._file[WAVE][:].astype(np.float64)
        if not (np.diff(self.wave) > 0).all():
            raise UserError(f"{self.path}: {WAVE} does not increase from pixel to pixel: expected a grid in Å")

    def read(self, start: int, stop: int) -> tuple[Float[ndarray, "row pixel"], Float[ndarray, "row pixel"]]:
        """Flux and error of rows ``start`` to ``stop``, rounded once to float32, NaN errors at the edges filled.

        Returns:
            Two (stop - start, pixels) float32 arrays.

        Raises:
            UserError: The rows cannot be read.
        """
        flux, error = (self._read_float32(array, start, stop) for array in (self._flux, self._error))
        self.filled_edges += fill_edges(error)
        return flux, error

    def _read_float32(self, array: h5py.Dataset, start: int, stop: int) -> Float[ndarray, "row pixel"]:
        try:
            source = array[start:stop]
        except OSError as error:
            raise UserError(
                f"{self.path}: rows {start} to {stop} cannot be read ({error}): copy the file again"
            ) from error
        with np.errstate(over="ignore"):  # a value beyond float32 becomes infinite, which `check_rows` reports
            return source.astype(np.float32)

    def read_params(self, start: int = 0, stop: int | None = None) -> pd.DataFrame:
        """Rows ``start`` to ``stop`` of the parameter table, indexed from 0.

        Raises:
            UserError: The table was not written by pandas.
        """
        try:
            frame = pd.read_hdf(self.path, PARAMS, start=start, stop=stop)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{self.path}: {PARAMS} is not a pandas table ({error}): write it with to_hdf") from error
        return frame.reset_index(drop=True)

    @functools.cached_property
    def params(self) -> pd.DataFrame:
        """The whole parameter table, one row a spectrum."""
        return self.read_params()

    @property
    def arrays(self) -> dict[str, str]:
        """The arrays of the file with their type, shape and storage, in words."""
        found = {name: group["value"] for name, group in self._file["dataset/arrays"].items() if "value" in group}
        return {
            name: f"{array.dtype} {array.shape}, {f'chunks {array.chunks}' if array.chunks else 'contiguous'}"
            + (f", {array.compression}" if array.compression else "")
            for name, array in found.items()
        }

    def fingerprint(self) -> str:
        """A SHA-256 that tells this file's content from another's without reading all of it.

        It covers the shape, the wavelength grid, the whole parameter table, and flux and error of 16 evenly spaced rows;
        a change confined to other rows goes unnoticed.
        """
        digest = hashlib.sha256(repr(self._flux.shape).encode())
        digest.update(self.wave.tobytes())
        digest.update(self._file[f"{PARAMS}/table"][:].tobytes())
        for row in np.unique(np.linspace(0, self.num_rows - 1, FINGERPRINT_ROWS).astype(int)):
            digest.update(self._flux[row].tobytes())
            digest.update(self._error[row].tobytes())
        return digest.hexdigest()


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


def _chunk_shape(num_rows: int, num_pixels: int) -> tuple[int, int] | None:
    """How the PFS simulator stores arrays of this shape; None is contiguous."""
    if num_rows * num_pixels <= 2**20:
        return None
    if num_rows <= 1024:
        return (64, num_pixels)
    return (num_rows if num_rows <= 65536 else 4096, num_pixels)


AppendRows = Callable[[Float[ndarray, "row pixel"], Float[ndarray, "row pixel"], pd.DataFrame], None]


@contextmanager
def write_spectra(
    path: Path, wave: Float[ndarray, " pixel"], wave_edges: Float[ndarray, " edge"], *, num_rows: int, tag: str
) -> Iterator[AppendRows]:
    """Write a file of spectra in pieces; it gets its name when all are there.

    Args:
        path: The file, in a folder that exists.
        wave: Pixel centres in vacuum Å, (pixels,).
        wave_edges: Pixel edges in vacuum Å, (pixels + 1,).
        num_rows: Number of spectra in all.
        tag: What the spectra are, kept as the root attribute ``simulation``.

    Yields:
        A function of (flux, error, params) that appends rows.

    Raises:
        ValueError: Other than ``num_rows`` rows were appended.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    frames: list[pd.DataFrame] = []
    done = 0
    try:
        with h5py.File(temporary, "w") as file:
            file[WAVE], file[WAVE_EDGES] = wave, wave_edges
            shape = (num_rows, len(wave))
            flux_array, error_array = (
                file.create_dataset(name, shape, "f8", chunks=_chunk_shape(*shape)) for name in (FLUX, ERROR)
            )
            file.create_dataset(MASK, shape, "i8", chunks=_chunk_shape(*shape))
            file.attrs[TAG] = tag

            def append(flux: ndarray, error: ndarray, params: pd.DataFrame) -> None:
                nonlocal done
                rows = slice(done, done + len(flux))
                flux_array[rows], error_array[rows] = flux, error
                frames.append(params)
                done = rows.stop

            yield append
        if done != num_rows:
            raise ValueError(f"{path}: {done} rows were appended, {num_rows} announced")
        params = pd.concat(frames, ignore_index=True)
        params.to_hdf(temporary, key=PARAMS, format="table", min_itemsize=5, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_simulation_tag(path: Path) -> str | None:
    """The ``tag`` a file was written with by ``write_spectra``; None where it has none.

    Raises:
        UserError: The file is not in the layout of spectra.
    """
    with open_spectra(path) as spectra:
        tag = spectra._file.attrs.get(TAG)
        return None if tag is None else str(tag)
