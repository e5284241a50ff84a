"""A node's local memory map of the shards it needs: decoded once, mapped by every trial on the node.

``cachefolder`` says what lies where and keeps the whole below a size, ``cachebuild`` fills in what is missing.
"""

from __future__ import annotations

import glob
import math
import mmap
import os
import weakref
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from jaxtyping import Float32
from numpy import ndarray

from scaling.console import Count, uncounted
from scaling.data.batches.cachebuild import CacheBuild
from scaling.data.batches.cachefolder import LOCK, allocated, hold, open_file, read_file, split_folder, written_to
from scaling.data.batches.decode import channels
from scaling.data.batches.noise import FixedNoise
from scaling.data.shards.manifest import Manifest
from scaling.errors import NodeError, UserError
from scaling.files import Location, private_folder, user_cache
from scaling.parquet import open_parquet, read_parquet

CACHE_LIMIT = "SCALING_CACHE_LIMIT"
MAP_NORESERVE = 0x4000
"""Linux's; Python has no name for it yet."""


@dataclass(frozen=True, eq=False)
class MappedSplit:
    """The first rows of a split, mapped from local disk: pages shared by all who map them.

    The array is private and writable in name only, so that PyTorch takes it without a copy or a warning: **nobody writes
    to it**; a write would cost memory in this process and never reach the file. It stays valid as long as it lives; while
    this object lives, and until ``close``, the split is not evicted either.

    Attributes:
        spectra: Flux and error of each row, or flux with fixed noise alone.
    """

    spectra: Float32[ndarray, "row channel pixel"]
    _parts: list[Path] = field(repr=False)
    _release: weakref.finalize = field(init=False, repr=False)

    @property
    def flux(self) -> Float32[ndarray, "row pixel"]:
        """Flux: free of noise where the error is beside it."""
        return self.spectra[:, 0]

    @property
    def error(self) -> Float32[ndarray, "row pixel"]:
        """One standard deviation of each pixel's noise; not there with fixed noise."""
        return self.spectra[:, 1]

    def params(self, columns: list[str]) -> pd.DataFrame:
        """Parameter columns of these rows (or ``row_id``), before ``close``.

        Raises:
            UserError: There is no such column.
        """
        contents = [read_file(part) for part in self._parts]
        try:
            known = open_parquet(contents[0]).schema_arrow.names
            if missing := [name for name in columns if name not in known]:
                raise UserError(f"no parameter column {missing[0]!r}: the shards have {', '.join(sorted(known))}")
            tables = [read_parquet(content, columns) for content in contents]
        except pa.ArrowException as error:
            raise UserError(f"{self._parts[0].parent}: cannot be read ({error}): remove this folder") from error
        return pa.concat_tables(tables).slice(0, len(self.spectra)).to_pandas()

    def close(self) -> None:
        """Let the split be evicted; as when this object is no longer referred to."""
        self._release()


def default_cache_root() -> Path:
    """``$SCALING_CACHE``, or this user's own cache folder."""
    named = os.environ.get("SCALING_CACHE")
    return Path(named) if named else user_cache("maps")


def cache_limit(given: str | None = None, name: str = CACHE_LIMIT) -> int | None:
    """The largest size of a node's cache in bytes, from what is given in GB or else ``$SCALING_CACHE_LIMIT``; None: any.

    Raises:
        UserError: It is not a positive, finite number.
    """
    text = os.environ.get(CACHE_LIMIT) if given is None else given
    if not text:
        return None
    try:
        limit = float(text)
    except ValueError:
        limit = math.nan
    if not 0 < limit < math.inf:
        raise UserError(f"{name} is {text!r}: give a number of GB above 0, such as 200, or leave it out")
    return int(limit * 1e9)


def mapped_bytes(root: Path) -> int:
    """What the spectra in a node's cache take on its disk. Only the maps are looked at, so it costs the same at any size."""
    # Unlike Path.glob it skips a folder that is evicted meanwhile.
    return sum(allocated(root / name) for name in glob.glob("*/*.f32", root_dir=root))


def map_split(
    shards: Location,
    split: str,
    num_rows: int,
    cache_root: Path | None = None,
    *,
    noise: FixedNoise | None = None,
    limit: int | None = None,
    progress: Count = uncounted,
) -> MappedSplit:
    """Map the first ``num_rows`` rows of a split, after filling in what this node's cache lacks of them.

    Any number of processes may ask for the same rows at once: one builds, the others wait and map its file. What is
    mapped has been compared with the digests of what was written, at its first use in this process.

    Args:
        shards: The shard set.
        split: ``train``, ``val`` or ``test``.
        num_rows: Rows wanted.
        cache_root: The cache, on a disk of this node; ``default_cache_root()`` if not given.
        noise: One draw a spectrum, added to what is stored; None stores flux and error.
        limit: The cache's largest size in bytes; ``cache_limit()`` if not given. To stay below it, the least recently
            used splits that nobody uses are evicted.
        progress: Called with the shards decoded, of those that the cache lacks.

    Raises:
        UserError: The split is shorter, or a shard is damaged.
        NodeError: The disk or the limit has no room, or the cache cannot be written or is not of this user alone.
    """
    manifest = Manifest.load(shards)
    parts = len(manifest.leading_shards(split, num_rows))
    limit = cache_limit() if limit is None else limit
    try:
        root = private_folder(cache_root or default_cache_root())
    except UserError as error:
        raise NodeError(str(error)) from error
    folder = split_folder(root, manifest, split)
    with written_to(root):
        held = hold(folder)
    try:
        build = CacheBuild(manifest=manifest, split=split, num_shards=parts, folder=folder, noise=noise)
        if build.lacking():
            build.run(root / LOCK, limit, progress)
            if build.lacking():
                raise NodeError(f"{folder}: what was written is not what is read back: name a cache on another disk")
        spectra = _map(build.path, (num_rows, channels(noise), manifest.pixels))
    except BaseException:
        os.close(held)
        raise
    mapped = MappedSplit(spectra, [build.part(index) for index in range(parts)])
    object.__setattr__(mapped, "_release", weakref.finalize(mapped, os.close, held))
    return mapped


def _map(path: Path, shape: tuple[int, int, int]) -> Float32[ndarray, "row channel pixel"]:
    """A file's leading rows, copy-on-write.

    Not ``np.memmap``: its private maps reserve memory for being written to, so that Linux refuses one larger than RAM.
    """
    file = open_file(path)
    try:
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        pages = mmap.mmap(file, 4 * math.prod(shape), flags=mmap.MAP_PRIVATE | MAP_NORESERVE, prot=protection)
    finally:
        os.close(file)
    return np.frombuffer(pages, dtype="<f4").reshape(shape)
