"""How shards get into a node's cache: which are missing or altered, and how they are decoded into their slices.

A shard is the unit: it fills its own slice of an array's file, at its own offset, and is marked with digests when it is
complete. So a build that is killed loses the shards under way and no more. Nothing is flushed to the disk on purpose: a
slice that a power failure lost fails its digest and is filled again.
"""

from __future__ import annotations

import functools
import io
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from jaxtyping import Float32
from numpy import ndarray

from scaling.data.batches.cachefolder import (
    IN_USE,
    MARKS,
    PARAMS,
    SOURCE,
    Mark,
    allocated,
    locked,
    make_room,
    no_room,
    open_file,
)
from scaling.data.batches.decode import channels, shard_spectra
from scaling.data.batches.noise import FixedNoise
from scaling.data.shards.manifest import Manifest
from scaling.files import is_full, json_bytes, private_folder, published

MAX_THREADS = 8
READ_BYTES = 2**22
Item, Result = TypeVar("Item"), TypeVar("Result")
_verified: set[tuple[int | str, ...]] = set()
"""What this process has compared with its digest: so that the trials it runs in turn pay once. A file that is written
to has another time of modification, and what lies in it is compared again."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheBuild:
    """What is wanted of one split, and where.

    Attributes:
        manifest: Of the shard set.
        split: ``train``, ``val`` or ``test``.
        shards: How many of its first shards.
        folder: The split's folder in the cache.
        noise: What the array is made with; None for flux and error.
    """

    manifest: Manifest
    split: str
    shards: int
    folder: Path
    noise: FixedNoise | None

    @property
    def array(self) -> str:
        """The array's name."""
        return "spectra" if self.noise is None else f"noisy-{self.noise.seed}-{float(self.noise.level)!r}"

    @property
    def path(self) -> Path:
        """The array's file."""
        return self.folder / f"{self.array}.f32"

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of the array."""
        return channels(self.noise) * self.manifest.pixels * 4

    def part(self, shard: int) -> Path:
        """The file of a shard's parameters."""
        return self.folder / PARAMS / f"{shard:05d}.parquet"

    def _slice(self, shard: int) -> tuple[int, int]:
        """Offset and length of a shard in the array's file."""
        first_row = shard * self.manifest.rows_per_shard
        return first_row * self.row_bytes, self.manifest.shards(self.split)[shard].rows * self.row_bytes

    def lacking(self) -> dict[int, list[str]]:
        """What of each shard is missing, or is not what was written: the array's slice, or the parameters."""
        names = dict(zip(range(self.shards), _in_threads(self._lacking, range(self.shards)), strict=True))
        return {shard: found for shard, found in names.items() if found}

    def _lacking(self, shard: int) -> list[str]:
        mark, found = Mark.of(self.folder, shard), []
        for name, path, (offset, length) in (
            (self.array, self.path, self._slice(shard)),
            (PARAMS, self.part(shard), (0, None)),
        ):
            digest = mark.digests.get(name)
            try:
                intact = digest is not None and _is_intact(path, offset, length, name, shard, digest)
            except FileNotFoundError:
                intact = False
            if not intact:
                found.append(name)
        return found

    def run(self, lock: Path, limit: int | None) -> None:
        """Fill what is lacking.

        One process of a node builds at a time: decoding uses all its cores and its disk as it is, and so the account of
        the room is exact without any reservation.

        Args:
            lock: The cache's lock file.
            limit: Of the whole cache, in bytes; unused splits are evicted to stay below.

        Raises:
            UserError: A shard is damaged, or there is no room; what is complete stays.
        """
        with locked(lock):
            lacking = self.lacking()
            if not lacking:
                return
            self._tidy()
            try:
                self._fill(lacking, limit)
            except OSError as error:
                if not is_full(error):
                    raise
                raise no_room(lock.parent, "the disk filled up meanwhile; what is complete stays") from error

    def _tidy(self) -> None:
        """Remove what an older format left."""
        for path in self.folder.iterdir():
            known = path.name in (IN_USE, SOURCE, PARAMS, MARKS) or path.name.startswith(("noisy-", "spectra.", "whitening"))
            if not known:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def _fill(self, lacking: dict[int, list[str]], limit: int | None) -> None:
        for name in (PARAMS, MARKS):
            private_folder(self.folder / name)
        complete = [shard for shard, there in enumerate(self._marked()) if there or self.array in lacking.get(shard, [])]
        growth = sum(self._slice(shard)[1] for shard in complete) - allocated(self.path)
        make_room(self.folder.parent, max(0, growth), limit)
        with published(self.folder / SOURCE) as temporary:
            temporary.write_bytes(json_bytes({"dataset": self.manifest.dest, "pixels": self.manifest.pixels}))
        file = open_file(self.path, os.O_RDWR | os.O_CREAT)
        try:
            os.truncate(file, self.manifest.num_rows(self.split) * self.row_bytes)
            fill = functools.partial(self._fill_shard, file)
            for _ in _in_threads(lambda item: fill(*item), lacking.items()):
                pass
        finally:
            os.close(file)

    def _marked(self) -> list[bool]:
        """Which shards of the split have a slice in the array."""
        shards = range(len(self.manifest.shards(self.split)))
        return [self.array in Mark.of(self.folder, shard).digests for shard in shards]

    def _fill_shard(self, file: int, shard: int, names: list[str]) -> None:
        """Write what a shard lacks, then mark it."""
        (offset, _), slice_digest, params = self._slice(shard), xxhash.xxh3_128(), []
        for spectra, table in shard_spectra(self.manifest, self.split, shard, self.noise):
            params.append(table)
            if self.array in names:
                slice_digest.update(spectra.data)
                _write_at(file, spectra, offset)
                offset += spectra.nbytes
        mark = Mark.of(self.folder, shard)
        if altered := [name for name in names if name in mark.digests]:
            log.warning("%s: shard %d was altered (%s): filled again", self.folder, shard, ", ".join(altered))
        digests = {name: digest for name, digest in mark.digests.items() if name not in names}
        if self.array in names:
            digests[self.array] = slice_digest.hexdigest()
        if PARAMS in names:
            sink = io.BytesIO()
            pq.write_table(pa.concat_tables(params), sink)
            digests[PARAMS] = xxhash.xxh3_128_hexdigest(sink.getbuffer())
            with published(self.part(shard)) as temporary:
                temporary.write_bytes(sink.getbuffer())
        with published(Mark.path(self.folder, shard)) as temporary:
            rows = self.manifest.shards(self.split)[shard].rows
            temporary.write_bytes(json_bytes({"rows": rows, "digests": digests}))


def _in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """The results in order; after an error, or where no more are wanted, nothing new is begun."""
    pool = ThreadPoolExecutor(min(MAX_THREADS, len(os.sched_getaffinity(0))))
    try:
        yield from pool.map(function, items)
    finally:
        pool.shutdown(cancel_futures=True)


def _is_intact(path: Path, offset: int, length: int | None, name: str, shard: int, digest: str) -> bool:
    """Whether some bytes of a file have a digest; compared once in a process, as long as nobody writes to the file."""
    file = open_file(path)
    try:
        there = os.fstat(file)
        key = (there.st_dev, there.st_ino, there.st_mtime_ns, name, shard, digest)
        if key in _verified:
            return True
        found, left = xxhash.xxh3_128(), there.st_size if length is None else length
        buffer = memoryview(bytearray(min(left, READ_BYTES)))
        while left:
            count = os.preadv(file, [buffer[: min(left, READ_BYTES)]], offset)
            if not count:
                return False
            found.update(buffer[:count])
            offset, left = offset + count, left - count
        if found.hexdigest() != digest:
            return False
        _verified.add(key)
        return True
    finally:
        os.close(file)


def _write_at(file: int, values: Float32[ndarray, "row channel pixel"], offset: int) -> None:
    """Write an array at a place in a file, which fails cleanly on a full disk, as a store into a map would not."""
    content = values.data.cast("B")
    while content:
        written = os.pwrite(file, content, offset)
        content, offset = content[written:], offset + written
