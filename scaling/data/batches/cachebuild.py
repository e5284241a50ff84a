"""Building a node's cache: finds missing or altered shards and decodes them into their slices.

Each shard fills its own slice of an array's file, at its own offset, and is marked with digests when it is complete. So a
killed build loses only the shards in progress. Slices are not flushed to disk: one that is lost in a power failure fails
its digest and is decoded again.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from scaling.console import Count, uncounted
from scaling.data.batches.cachefolder import MARKS, PARAMS, Mark, allocated, locked, make_room, open_file, written_to
from scaling.data.batches.decode import channels, shard_spectra
from scaling.data.batches.noise import FixedNoise
from scaling.data.shards.manifest import Manifest
from scaling.files import private_folder, published

MAX_THREADS = 8
READ_BYTES = 2**22
Item = TypeVar("Item")
Result = TypeVar("Result")
_verified: set[tuple[int | str, ...]] = set()
"""What this process has verified against its digest, so that consecutive trials in it pay only once. Writing to a file
changes its modification time, and everything in it is verified again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheBuild:
    """The part of a split to build: its first ``num_shards`` shards, with fixed noise or as flux and error."""

    manifest: Manifest
    split: str
    num_shards: int
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

    def part(self, shard: int) -> Path:
        """The file of a shard's parameters."""
        return self.folder / PARAMS / f"{shard:05d}.parquet"

    def _slice(self, shard: int) -> tuple[int, int]:
        """Offset and length of a shard in the array's file."""
        row_bytes = channels(self.noise) * self.manifest.pixels * 4
        first_row = shard * self.manifest.rows_per_shard
        return first_row * row_bytes, self.manifest.shards(self.split)[shard].rows * row_bytes

    def _mark(self, shard: int) -> Mark:
        return Mark.read(Mark.path(self.folder, shard))

    def lacking(self) -> dict[int, list[str]]:
        """The missing or altered parts of each shard: the array's slice, or the parameters."""
        names = _in_threads(self._lacking, range(self.num_shards))
        return {shard: found for shard, found in enumerate(names) if found}

    def _lacking(self, shard: int) -> list[str]:
        digests = self._mark(shard).digests
        places = {self.array: (self.path, *self._slice(shard)), PARAMS: (self.part(shard), 0, None)}
        return [name for name, place in places.items() if not _is_intact(*place, name, shard, digests.get(name))]

    def run(self, lock: Path, limit: int | None, progress: Count = uncounted) -> None:
        """Decode the missing shards.

        One process per node builds at a time: a build already uses all cores and the disk, and so the space can be
        accounted for exactly, without reservations.

        Args:
            lock: The cache's lock file.
            limit: Size limit of the whole cache, in bytes; unused splits are evicted to stay below.
            progress: Called with (shards decoded, missing shards).

        Raises:
            UserError: A shard is damaged.
            NodeError: There is no space, or the disk cannot be written; completed shards are kept.
        """
        with written_to(lock.parent), locked(lock):
            if lacking := self.lacking():
                self._fill(lacking, limit, progress)

    def _fill(self, lacking: dict[int, list[str]], limit: int | None, progress: Count) -> None:
        for name in (PARAMS, MARKS):
            private_folder(self.folder / name)
        all_shards = range(len(self.manifest.shards(self.split)))
        after = [shard for shard in all_shards if self.array in (*lacking.get(shard, ()), *self._mark(shard).digests)]
        growth = sum(self._slice(shard)[1] for shard in after) - allocated(self.path)
        make_room(self.folder.parent, max(0, growth), limit)
        file = open_file(self.path, os.O_RDWR | os.O_CREAT)
        try:
            os.truncate(file, sum(self._slice(all_shards[-1])))
            filled = _in_threads(lambda item: self._fill_shard(file, *item), lacking.items())
            for count, _ in enumerate(filled, 1):
                progress(count, len(lacking))
        finally:
            os.close(file)

    def _fill_shard(self, file: int, shard: int, names: list[str]) -> None:
        """Write the missing parts of a shard, then mark them as complete."""
        (offset, _), slice_digest, params = self._slice(shard), xxhash.xxh3_128(), []
        for spectra, table in shard_spectra(self.manifest, self.split, shard, self.noise):
            params.append(table)
            if self.array in names:
                slice_digest.update(spectra.data)
                _write_at(file, spectra.data.cast("B"), offset)
                offset += spectra.nbytes
        before = self._mark(shard).digests
        if altered := [name for name in names if name in before]:
            text = "%s: shard %d was altered (%s): filled again"
            logging.getLogger(__name__).warning(text, self.folder, shard, ", ".join(altered))
        digests = {name: digest for name, digest in before.items() if name not in names}
        if self.array in names:
            digests[self.array] = slice_digest.hexdigest()
        if PARAMS in names:
            content = io.BytesIO()
            pq.write_table(pa.concat_tables(params), content)
            digests[PARAMS] = xxhash.xxh3_128_hexdigest(content.getbuffer())
            with published(self.part(shard)) as temporary:
                temporary.write_bytes(content.getbuffer())
        rows = self.manifest.shards(self.split)[shard].rows
        Mark(rows, self.manifest.dest, digests).write(Mark.path(self.folder, shard))


def _in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Map a function over items in threads; yields results in order and starts nothing new after an error."""
    pool = ThreadPoolExecutor(min(MAX_THREADS, len(os.sched_getaffinity(0))))
    try:
        yield from pool.map(function, items)
    finally:
        pool.shutdown(cancel_futures=True)


def _is_intact(path: Path, offset: int, length: int | None, name: str, shard: int, digest: str | None) -> bool:
    """Whether a range of a file matches a digest; checked once per process, as long as the file is not modified."""
    try:
        file = open_file(path)
    except FileNotFoundError:
        return False
    try:
        there = os.fstat(file)
        key = (there.st_dev, there.st_ino, there.st_mtime_ns, name, shard, str(digest))
        if key in _verified:
            return True
        found, left = xxhash.xxh3_128(), there.st_size if length is None else length
        buffer = memoryview(bytearray(min(left, READ_BYTES)))
        while left and digest is not None and (count := os.preadv(file, [buffer[: min(left, READ_BYTES)]], offset)):
            found.update(buffer[:count])
            offset, left = offset + count, left - count
        if intact := not left and found.hexdigest() == digest:
            _verified.add(key)
        return intact
    finally:
        os.close(file)


def _write_at(file: int, content: memoryview, offset: int) -> None:
    """Write bytes at an offset with a call that fails cleanly on a full disk, unlike a store into a memory map."""
    while content:
        written = os.pwrite(file, content, offset)
        content, offset = content[written:], offset + written
