"""Writer of the PFS dataset layout, block by block."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import pandas as pd
from jaxtyping import Float
from numpy import ndarray

from scaling.data.hdf5.guard import reason
from scaling.data.hdf5.reader import ERROR_ARRAY, FLUX_ARRAY, MASK_ARRAY, PARAMS, TAG, WAVE, WAVE_EDGES
from scaling.data.spectra import Pixels
from scaling.errors import UserError
from scaling.files import FINAL, disk_is_full, is_full, require_space

PARAMS_BYTES = 350
"""Size on disk of a row of parameters, with its index: 35 columns, rounded up."""
FILE_BYTES = 250_000
"""Size of a file without rows: names, wavelengths, and the parameters' first chunk and index."""
FRAMES = 32
"""Parameter frames buffered and written together; three copies of the whole table would be hundreds of MB."""
ABANDONED_SECONDS = 3600
"""Another host's unfinished file counts as abandoned if unchanged for this long; a live writer writes continuously."""

AppendRows = Callable[[Pixels, Pixels, pd.DataFrame], None]


@contextlib.contextmanager
def write_spectra(
    path: Path, wave: Float[ndarray, " pixel"], wave_edges: Float[ndarray, " edge"], *, num_rows: int, tag: str
) -> Iterator[AppendRows]:
    """Write a file of spectra block by block; it is renamed into place once complete.

    Leftovers of a killed writer of the same file are removed first. ``wave`` are pixel centres, ``wave_edges`` their
    edges, in vacuum Å; ``tag`` describes the spectra and is stored as the root attribute ``simulation``.

    Yields:
        A function of (flux, error, params) that appends rows.

    Raises:
        UserError: The disk is full (`FullError`), or the folder cannot be written.
        ValueError: The number of appended rows is not ``num_rows``.
    """
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    _remove_abandoned(path)
    needed = file_bytes(num_rows, len(wave))
    require_space(path, needed)
    frames: list[pd.DataFrame] = []
    try:
        with h5py.File(temporary, "w") as file:
            file[WAVE], file[WAVE_EDGES], file.attrs[TAG] = wave, wave_edges, tag
            shape, chunks = (num_rows, len(wave)), chunk_shape(num_rows, len(wave))
            # Every row will be written; filling with zeros first would write the whole file twice, a chunk at a time.
            options = {"dtype": "f8", "chunks": chunks, "fill_time": "never"}
            flux, error = (file.create_dataset(name, shape, **options) for name in (FLUX_ARRAY, ERROR_ARRAY))
            file.create_dataset(MASK_ARRAY, shape, "i8", chunks=chunks)  # unwritten, as in real files: reads as 0, good
            # HDF5 may crash the process when a disk fills up, so the space is allocated now. PyTables, which adds the
            # parameters, truncates the file to its content.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.id.get_vfd_handle(), 0, needed)
            done = 0

            def append(flux_rows: ndarray, error_rows: ndarray, params: pd.DataFrame) -> None:
                nonlocal done
                rows = slice(done, done + len(flux_rows))
                flux[rows], error[rows] = flux_rows, error_rows
                frames.append(params.set_axis(range(rows.start, rows.stop)))
                done = rows.stop

            yield append
        if done != num_rows:
            raise ValueError(f"{path}: {done} rows were appended, {num_rows} announced")
        _append_params(temporary, frames, num_rows)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as problem:
        if is_full(problem):
            raise disk_is_full(path, needed) from problem
        if isinstance(problem, FINAL):
            raise UserError(f"{path}: cannot be written ({reason(problem)}): name another folder") from problem
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _append_params(path: Path, frames: list[pd.DataFrame], num_rows: int) -> None:
    with pd.HDFStore(path, "a") as store:
        for first in range(0, len(frames), FRAMES):
            frame = pd.concat(frames[first : first + FRAMES])
            store.append(PARAMS, frame, index=False, expectedrows=num_rows, min_itemsize=5, encoding="utf-8")
        store.create_table_index(PARAMS)


def file_bytes(num_rows: int, num_pixels: int) -> int:
    """Upper bound on the size in bytes of a file of spectra; the last chunk is stored whole."""
    chunks = chunk_shape(num_rows, num_pixels)
    stored = math.ceil(num_rows / chunks[0]) * chunks[0] if chunks else num_rows
    return FILE_BYTES + 2 * 8 * stored * num_pixels + num_rows * PARAMS_BYTES


def chunk_shape(num_rows: int, num_pixels: int) -> tuple[int, int] | None:
    """Chunk shape that the PFS simulator uses for arrays of this shape; None is contiguous."""
    if num_rows * num_pixels <= 2**20:
        return None
    if num_rows <= 1024:
        return (64, num_pixels)
    return (num_rows if num_rows <= 65536 else 4096, num_pixels)


def _remove_abandoned(path: Path) -> None:
    """Remove unfinished files of dead writers of ``path``."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        *host, pid = leftover.name.removeprefix(f".{path.name}.").removesuffix(".tmp").split(".")
        if ".".join(host) == socket.gethostname():
            alive = pid.isdigit() and _is_running(int(pid))
        else:
            alive = bool(host) and time.time() - leftover.stat().st_mtime < ABANDONED_SECONDS
        if not alive:
            leftover.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    with contextlib.suppress(PermissionError):  # belongs to another user
        try:
            os.kill(pid, 0)
        except (ProcessLookupError, OverflowError):
            return False
    return True
