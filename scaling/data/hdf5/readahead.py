"""Asynchronous read-ahead of HDF5 rows, so that disk and processor work in parallel."""

from __future__ import annotations

import os

import h5py


class ReadAhead:
    """Read-ahead for rows of a (rows, pixels) array, in ascending order.

    A no-op where unsupported (by the file driver or the platform): rows are then read synchronously.
    """

    def __init__(self, array: h5py.Dataset) -> None:
        able = hasattr(os, "posix_fadvise") and array.file.driver == "sec2"
        self._array, self._chunk = array, -1
        self._descriptor = array.file.id.get_vfd_handle() if able else None
        self._row_bytes = array.shape[1] * array.dtype.itemsize
        filters = array.id.get_create_plist().get_nfilters()
        self._whole = bool(array.chunks) and (filters > 0 or array.chunks[1] != array.shape[1])

    def ask(self, start: int, stop: int) -> None:
        """Start reading rows ``start`` to ``stop`` into memory without waiting; compressed chunks whole, once."""
        if self._descriptor is None:
            return
        if self._array.chunks is None:
            self._advise(self._array.id.get_offset(), start * self._row_bytes, (stop - start) * self._row_bytes)
            return
        rows, pixels = self._array.chunks
        for first in range(start // rows * rows, stop, rows):
            if self._whole and first <= self._chunk:
                continue
            self._chunk = first
            low, high = max(start - first, 0) * self._row_bytes, min(stop - first, rows) * self._row_bytes
            for pixel in range(0, self._array.shape[1], pixels):
                chunk = self._array.id.get_chunk_info_by_coord((first, pixel))
                begin, end = (0, chunk.size) if self._whole else (low, high)
                self._advise(chunk.byte_offset, begin, end - begin)

    def _advise(self, offset: int | None, begin: int, length: int) -> None:
        if offset is not None:  # the chunk is stored
            assert self._descriptor is not None
            os.posix_fadvise(self._descriptor, offset + begin, length, os.POSIX_FADV_WILLNEED)
