"""The arrays of a file of spectra as they are stored, without reading them."""

from __future__ import annotations

from collections import Counter

import h5py

from scaling.data.hdf5.guard import find, find_array, shown

ARRAYS = "dataset/arrays"


def find_arrays(file: h5py.File) -> dict[str, h5py.Dataset]:
    """The arrays of a file by their short name."""
    group = find(file, ARRAYS)
    names = group if isinstance(group, h5py.Group) else ()
    found = {name: find_array(file, f"{ARRAYS}/{name}/value") for name in names}
    return {name: array for name, array in found.items() if array is not None}


def in_words(arrays: dict[str, h5py.Dataset]) -> dict[str, str]:
    """The type, shape and storage of arrays."""
    return {
        shown(name): f"{array.dtype} {array.shape}, {f'chunks {array.chunks}' if array.chunks else 'contiguous'}"
        + (f", {array.compression}" if array.compression else "")
        for name, array in arrays.items()
    }


def storage_problems(arrays: dict[str, h5py.Dataset]) -> list[str]:
    """Arrays of other lengths, and flux or error that was never stored; found without reading them.

    A mask that was never stored is normal: it reads as 0, good.
    """
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
    """Ranges of rows for which a file holds no bytes."""
    rows = len(array)
    if array.chunks is None:
        return [] if array.id.get_storage_size() else [(0, rows)]
    stored: Counter[int] = Counter()
    array.id.chunk_iter(lambda chunk: stored.update([chunk.chunk_offset[0]]))
    across = -(-array.shape[1] // array.chunks[1])
    whole = sorted(start for start, count in stored.items() if count >= across)
    starts = [0, *(start + array.chunks[0] for start in whole)]
    return [(start, stop) for start, stop in zip(starts, [*whole, rows], strict=True) if start < stop]
