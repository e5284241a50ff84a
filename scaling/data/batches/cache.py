"""A node's local memory map of the shards it needs: expanded once, mapped by every trial on the node.

The files only grow: more rows are appended beyond a watermark, which moves when they are checked and on the disk. So a
shorter map in use stays valid, and after a kill the next process goes on from the watermark. ``cachefolder`` says what
lies where, ``cachebuild`` appends, ``evict`` keeps the whole below a size.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
import weakref
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock
from jaxtyping import Float32
from numpy import ndarray

from scaling.data.batches.cachebuild import CacheBuild
from scaling.data.batches.cachefolder import LOCK, array_path, hold, part_path, split_folder
from scaling.data.batches.noise import FixedNoise
from scaling.data.shards.manifest import Manifest
from scaling.data.shards.shardfile import ERROR, FLUX
from scaling.errors import UserError

CACHE_LIMIT = "SCALING_CACHE_LIMIT"
MAP_NORESERVE = 0x4000
"""Linux's; Python has no name for it yet."""


@dataclass(frozen=True, eq=False)
class MappedSplit:
    """The first rows of a split, mapped from local disk: (rows, pixels) float32, pages shared by all who map them.

    The arrays are private and writable in name only, so that PyTorch takes them without a copy or a warning: **nobody
    writes to them**; a write would cost memory in this process and never reach the file. The arrays stay valid as long as
    they live; while this object lives, and until ``close``, the split is not evicted either.

    Attributes:
        flux: Noise-free flux; None where fixed noise was asked for.
        error: One standard deviation of each pixel's noise; None where fixed noise was asked for.
        noisy: Flux with fixed noise; None without.
        num_rows: Rows mapped.
    """

    flux: Float32[ndarray, "row pixel"] | None
    error: Float32[ndarray, "row pixel"] | None
    noisy: Float32[ndarray, "row pixel"] | None
    num_rows: int
    _parts: list[Path] = field(repr=False)
    _release: weakref.finalize = field(init=False, repr=False)

    def params(self, columns: list[str]) -> pd.DataFrame:
        """Parameter columns of these rows (or ``row_id``), before ``close``.

        Raises:
            UserError: There is no such column.
        """
        known = pq.read_schema(self._parts[0]).names
        if missing := [name for name in columns if name not in known]:
            raise UserError(f"no parameter column {missing[0]!r}: the shards have {', '.join(sorted(known))}")
        tables = [pq.read_table(part, columns=columns, partitioning=None) for part in self._parts]
        return pa.concat_tables(tables).slice(0, self.num_rows).to_pandas()

    def close(self) -> None:
        """Let the split be evicted; as when this object is no longer referred to."""
        self._release()


def default_cache_root() -> Path:
    """``$SCALING_CACHE``, or this user's folder in the system's temporary folder."""
    named = os.environ.get("SCALING_CACHE")
    return Path(named) if named else Path(tempfile.gettempdir()) / f"spectral-scaling-cache-{os.getuid()}"


def cache_limit() -> int | None:
    """``$SCALING_CACHE_LIMIT``, the largest size of a node's cache given in GB, in bytes; None where it is not set.

    Raises:
        UserError: It is not a positive number.
    """
    text = os.environ.get(CACHE_LIMIT)
    if not text:
        return None
    try:
        limit = float(text)
    except ValueError:
        limit = math.nan
    if not limit > 0:
        raise UserError(f"{CACHE_LIMIT} is {text!r}: give a number of GB above 0, such as 200, or unset it")
    return int(limit * 1e9)


def map_split(
    shards_dir: Path,
    split: str,
    num_rows: int,
    cache_root: Path | None = None,
    *,
    noise: FixedNoise | None = None,
    limit: int | None = None,
) -> MappedSplit:
    """Map the first ``num_rows`` rows of a split, appending what this node's cache lacks of them first.

    Any number of processes may ask for the same rows at once: one builds, the others wait and map its files. Without
    noise the flux and the error are stored and mapped; with noise the noisy flux only.

    Args:
        shards_dir: The shard set.
        split: ``train``, ``val`` or ``test``.
        num_rows: Rows wanted.
        cache_root: The cache, on a disk of this node; ``default_cache_root()`` if not given.
        noise: One draw a spectrum.
        limit: The cache's largest size in bytes; ``cache_limit()`` if not given. To stay below it, the least recently
            used splits that nobody uses are evicted.

    Raises:
        UserError: The split is shorter, a shard is damaged, or the disk or the limit has no room.
    """
    manifest = Manifest.load(shards_dir)
    shards = manifest.leading_shards(split, num_rows)
    limit = cache_limit() if limit is None else limit
    folder = split_folder(cache_root or default_cache_root(), manifest, split)
    arrays = (FLUX, ERROR) if noise is None else (f"noisy-{noise.seed}-{float(noise.level)!r}",)
    held = hold(folder)
    try:
        build = CacheBuild(manifest=manifest, split=split, shards=shards, folder=folder, arrays=arrays, noise=noise)
        if not build.is_complete():
            with FileLock(folder / LOCK):
                if not build.is_complete():
                    build.run(limit)
        maps = {array: _map(array_path(folder, array), num_rows, manifest.pixels) for array in arrays}
    except BaseException:
        os.close(held)
        raise
    mapped = MappedSplit(
        flux=maps.get(FLUX),
        error=maps.get(ERROR),
        noisy=None if noise is None else maps[arrays[0]],
        num_rows=num_rows,
        _parts=[part_path(folder, index) for index in range(len(shards))],
    )
    object.__setattr__(mapped, "_release", weakref.finalize(mapped, os.close, held))
    return mapped


def _map(path: Path, rows: int, pixels: int) -> Float32[ndarray, "row pixel"]:
    """A file's leading rows, copy-on-write.

    Not ``np.memmap``: its private maps reserve memory for being written to, so that Linux refuses one larger than RAM.
    """
    with open(path, "rb") as file:
        pages = mmap.mmap(
            file.fileno(),
            rows * pixels * 4,
            flags=mmap.MAP_PRIVATE | MAP_NORESERVE,
            prot=mmap.PROT_READ | mmap.PROT_WRITE,
        )
    return np.frombuffer(pages, dtype="<f4").reshape(rows, pixels)
