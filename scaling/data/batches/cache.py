"""A node's local cache of decoded shards: decoded once, memory-mapped by every trial on the node.

``cachefolder`` defines the layout and enforces the size limit, ``cachebuild`` decodes missing shards.
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
"""The value on Linux; Python has no constant for it yet."""


@dataclass(frozen=True, eq=False)
class MappedSplit:
    """The first rows of a split, mapped from local disk; the pages are shared by all processes that map them.

    The mapping is private and nominally writable, so that PyTorch accepts it without a copy or a warning. **Never write
    to it**: a write would use memory in this process and never reach the file. The array stays valid as long as it is
    referenced. The split is not evicted while this object is alive, or until ``close``.

    Attributes:
        spectra: Flux and error of each row, or only the flux with fixed noise.
    """

    spectra: Float32[ndarray, "row channel pixel"]
    _parts: list[Path] = field(repr=False)
    _release: weakref.finalize = field(init=False, repr=False)

    @property
    def flux(self) -> Float32[ndarray, "row pixel"]:
        """Flux: noise-free where the error is stored beside it."""
        return self.spectra[:, 0]

    @property
    def error(self) -> Float32[ndarray, "row pixel"]:
        """One standard deviation of each pixel's noise; not available with fixed noise."""
        return self.spectra[:, 1]

    def params(self, columns: list[str]) -> pd.DataFrame:
        """Parameter columns of these rows (or ``row_id``); must be called before ``close``.

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
        """Allow the split to be evicted, as when this object is garbage-collected."""
        self._release()


def default_cache_root() -> Path:
    """``$SCALING_CACHE``, or this user's private cache folder."""
    named = os.environ.get("SCALING_CACHE")
    return Path(named) if named else user_cache("maps")


def private_root(cache_root: Path | None) -> Path:
    """The folder of a node's cache, ``default_cache_root()`` if not given; it is created if needed.

    Raises:
        NodeError: It cannot be created, or is not private to this user.
    """
    try:
        return private_folder(cache_root or default_cache_root())
    except UserError as error:
        raise NodeError(str(error)) from error


def cache_limit(given: str | None = None, name: str = CACHE_LIMIT) -> int | None:
    """The size limit of a node's cache in bytes, from a value in GB or ``$SCALING_CACHE_LIMIT``; None: no limit.

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
    """Disk space of the spectra in a node's cache; only maps are examined, so the cost does not depend on its size."""
    # Unlike Path.glob this skips a folder that is evicted meanwhile.
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
    """Map the first ``num_rows`` rows of a split, after decoding those that are missing from this node's cache.

    Any number of processes may request the same rows at once: one builds, the others wait and map its file. On first use
    in this process, the mapped data are verified against the digests recorded when they were written.

    Args:
        shards: The shard set.
        split: ``train``, ``val`` or ``test``.
        num_rows: Number of rows.
        cache_root: The cache, on a disk of this node; ``default_cache_root()`` if not given.
        noise: Added to the stored flux, one draw per spectrum; None stores flux and error.
        limit: The cache's size limit in bytes; ``cache_limit()`` if not given. To stay below it, the least recently
            used splits that no process uses are evicted.
        progress: Called with (shards decoded, missing shards).

    Raises:
        UserError: The split is shorter, or a shard is damaged.
        NodeError: There is no space on the disk or within the limit, or the cache is not writable or not private to this user.
    """
    manifest = Manifest.load(shards)
    parts = len(manifest.leading_shards(split, num_rows))
    limit = cache_limit() if limit is None else limit
    root = private_root(cache_root)
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
    """Map a file's leading rows, copy-on-write.

    Not ``np.memmap``: it reserves memory for writes to its private maps, so that Linux refuses one larger than RAM.
    """
    file = open_file(path)
    try:
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        pages = mmap.mmap(file, 4 * math.prod(shape), flags=mmap.MAP_PRIVATE | MAP_NORESERVE, prot=protection)
    finally:
        os.close(file)
    return np.frombuffer(pages, dtype="<f4").reshape(shape)
