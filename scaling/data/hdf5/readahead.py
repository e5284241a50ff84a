"""Asking the kernel for rows of an HDF5 array before they are read, so that the disk works while the processor does."""

from __future__ import annotations

import os
from collections.abc import Iterator

import h5py


def ask_for_rows(array: h5py.Dataset, start: int, stop: int) -> None:
    """Begin to bring rows ``start`` to ``stop`` of a (rows, pixels) array into memory, without waiting for them.

    Where that is not possible (a file system driver or platform without it) nothing happens: they are read when read.
    """
    if not hasattr(os, "posix_fadvise") or array.file.driver != "sec2":
        return
    descriptor = array.file.id.get_vfd_handle()
    for offset, length in _byte_ranges(array, start, stop):
        os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_WILLNEED)


def _byte_ranges(array: h5py.Dataset, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Where rows lie in the file, as (offset, length); whole chunks where they are compressed or cut across pixels."""
    row_bytes = array.shape[1] * array.dtype.itemsize
    if array.chunks is None:
        if (offset := array.id.get_offset()) is not None:
            yield offset + start * row_bytes, (stop - start) * row_bytes
        return
    rows, pixels = array.chunks
    plain = array.compression is None and pixels == array.shape[1] and array.id.get_create_plist().get_nfilters() == 0
    for first in range(start // rows * rows, stop, rows):
        for pixel in range(0, array.shape[1], pixels):
            chunk = array.id.get_chunk_info_by_coord((first, pixel))
            if chunk.byte_offset is None:
                continue
            low, high = max(start - first, 0), min(stop - first, rows)
            if plain:
                yield chunk.byte_offset + low * row_bytes, (high - low) * row_bytes
            elif start <= first:  # once, with the rows that it begins with
                yield chunk.byte_offset, chunk.size
