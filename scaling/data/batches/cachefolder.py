"""A node's cache on disk: its layout, which splits are in use, and how it stays below a size limit.

``ROOT/<split>-<digest of the whole split>/``::

    spectra.f32, noisy-<seed>-<level>.f32   (rows, 2 or 1, pixels) little-endian float32 of the whole split: flux and error
                                            side by side, or flux with fixed noise; a hole where a shard is missing
    params/00000.parquet                    the non-spectral columns of each shard
    marks/00000.json                        the complete parts of each shard, with digests
    whitening-<digest>.map                  linear maps fitted to the training spectra (``whitening``)
    in-use                                  share-locked by every process that maps the split

``ROOT/lock`` is held by the one process of the node that builds. Only regular files of this user are opened, never
through a link: anyone who could plant one could choose what this user reads or overwrites.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from scaling.data.shards.manifest import SPLITS, Manifest
from scaling.errors import NodeError, UserError
from scaling.files import is_full, json_bytes, published, size_text

LOCK, IN_USE, PARAMS, MARKS = "lock", "in-use", "params", "marks"
_NAME = re.compile(rf"(?:{'|'.join(SPLITS)})-[0-9a-f]+")


def open_file(path: Path, flags: int = os.O_RDONLY) -> int:
    """Open a file of a cache and return its descriptor.

    Raises:
        UserError: It is a link, is not a regular file, or does not belong to this user.
    """
    try:
        # Without O_NONBLOCK, opening a named pipe would block until its other end is opened.
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise
        raise _not_own(path) from error
    there = os.fstat(descriptor)
    if stat.S_ISREG(there.st_mode) and there.st_uid == os.getuid():
        return descriptor
    os.close(descriptor)
    raise _not_own(path)


def _not_own(path: Path) -> UserError:
    return UserError(f"{path}: must be a real file or folder of yours, not a link: remove it, or name another cache")


def read_file(path: Path) -> bytes:
    """The content of a file of a cache."""
    with open(open_file(path), "rb") as file:
        return file.read()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file, against all other processes and threads."""
    descriptor = open_file(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Mark:
    """The complete parts of a shard: a digest of its slice of each array and of its parameters, by name.

    ``rows`` and ``dataset``, the shard set it is from, are only for listing a cache.
    """

    rows: int
    dataset: str
    digests: dict[str, str]

    @staticmethod
    def path(folder: Path, shard: int) -> Path:
        """The path of a shard's mark."""
        return folder / MARKS / f"{shard:05d}.json"

    @classmethod
    def read(cls, path: Path) -> Mark:
        """Read a mark; if it is missing or damaged, nothing counts as complete."""
        try:
            found = cls(**json.loads(read_file(path)))
            return cls(
                int(found.rows), str(found.dataset), {name: str(digest) for name, digest in found.digests.items()}
            )
        except (OSError, ValueError, TypeError, AttributeError, RecursionError):
            return cls(0, "?", {})

    def write(self, path: Path) -> None:
        """Write the mark atomically."""
        with published(path) as temporary:
            temporary.write_bytes(json_bytes(asdict(self)))


def split_folder(root: Path, manifest: Manifest, split: str) -> Path:
    """A split's folder in a node's cache."""
    return root / f"{split}-{manifest.digest(split, manifest.num_rows(split))}"


def hold(folder: Path) -> int:
    """Create a split's folder if needed, and protect it from eviction.

    Returns:
        A file descriptor: the folder is in use until it is closed or the process ends.

    Raises:
        UserError: The folder is a link or does not belong to this user.
    """
    while True:
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        try:
            there = folder.lstat()
            if not stat.S_ISDIR(there.st_mode) or there.st_uid != os.getuid():
                raise _not_own(folder)
            held = open_file(folder / IN_USE, os.O_RDWR | os.O_CREAT)
        except FileNotFoundError:  # evicted since the lines above
            continue
        fcntl.flock(held, fcntl.LOCK_SH)
        if _is_current(held, folder):
            os.utime(held, ns=(time.time_ns(),) * 2)  # time of last use; the kernel's own timestamp is coarse
            return held
        os.close(held)  # evicted while waiting for the lock


def take(folder: Path) -> int | None:
    """Lock a split's folder exclusively; None if it is in use or gone. The caller must close the descriptor."""
    try:
        taken = open_file(folder / IN_USE, os.O_RDWR)
    except FileNotFoundError:
        return None
    with suppress(BlockingIOError):
        fcntl.flock(taken, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_current(taken, folder):
            return taken
    os.close(taken)
    return None


def _is_current(descriptor: int, folder: Path) -> bool:
    """Whether a locked file is still the one at this path; the folder may have been evicted and created again."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(folder / IN_USE))
    except FileNotFoundError:
        return False


def allocated(path: Path) -> int:
    """Bytes allocated to a file on disk, fewer than its length if it has holes."""
    try:
        return path.lstat().st_blocks * 512
    except FileNotFoundError:
        return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedSplit:
    """A split in the cache: complete rows of each array, allocated bytes, and when it was last mapped (Unix time)."""

    folder: Path
    dataset: str
    arrays: dict[str, int]
    num_bytes: int
    last_used: float
    in_use: bool

    @classmethod
    def of(cls, folder: Path) -> CachedSplit:
        """Read the state of a split's folder.

        Raises:
            FileNotFoundError: It is evicted meanwhile.
        """
        last_used, taken = (folder / IN_USE).lstat().st_mtime, take(folder)
        if taken is not None:
            os.close(taken)
        marks = [Mark.read(path) for path in folder.glob(f"{MARKS}/*.json")]
        names = [path.stem for path in sorted(folder.glob("*.f32"))]
        return cls(
            folder=folder,
            dataset=next((mark.dataset for mark in marks if mark.rows), "?"),
            arrays={name: sum(mark.rows for mark in marks if name in mark.digests) for name in names},
            num_bytes=sum(map(allocated, folder.rglob("*"))),
            last_used=last_used,
            in_use=taken is None,
        )

    @property
    def split(self) -> str:
        """``train``, ``val`` or ``test``."""
        return self.folder.name.partition("-")[0]

    def __str__(self) -> str:
        arrays = ", ".join(f"{name} ({rows:,} rows)" for name, rows in self.arrays.items()) or "nothing complete"
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.last_used))
        state = "in use" if self.in_use else f"last used {used}"
        return f"  {size_text(self.num_bytes):>8}  {self.split:<5}  {state}  {self.dataset}: {arrays}"


def cached_splits(root: Path) -> list[CachedSplit]:
    """The splits in a cache, least recently used first. Folders that no cache created are skipped."""
    splits = []
    for folder in root.iterdir() if root.is_dir() else ():
        if _NAME.fullmatch(folder.name) and not folder.is_symlink() and (folder / IN_USE).is_file():
            with suppress(FileNotFoundError):  # evicted by another process meanwhile
                splits.append(CachedSplit.of(folder))
    return sorted(splits, key=lambda split: split.last_used)


def evict(root: Path, limit: int | None = None) -> list[CachedSplit]:
    """Remove splits that no process uses, least recently used first, and return them.

    Whole splits are evicted, not shards, because trials use prefixes: a split in use always needs its first shards. No
    further lock is needed: eviction only frees space, and processes hold what they map or build.

    Args:
        root: The cache.
        limit: Stop once the cache is no larger than this, in bytes; by default all unused splits are removed.
    """
    for leftover in root.glob(".evicted-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    splits = cached_splits(root)
    total, removed = sum(split.num_bytes for split in splits), []
    for split in splits:
        if limit is not None and total <= limit:
            break
        if (taken := take(split.folder)) is None:
            continue
        grave = root / f".evicted-{uuid.uuid4().hex}"
        try:
            os.rename(split.folder, grave)  # renamed first, so that no process maps a half-deleted split
        finally:
            os.close(taken)
        shutil.rmtree(grave, ignore_errors=True)
        total -= split.num_bytes
        removed.append(split)
    return removed


def make_room(root: Path, growth: int, limit: int | None) -> None:
    """Evict enough for a cache to grow by ``growth`` bytes and stay within a limit, all in bytes.

    Raises:
        NodeError: It cannot fit beside the splits in use (then nothing is evicted), or the disk has no space.
    """
    if limit is not None:
        used = sum(split.num_bytes for split in cached_splits(root) if split.in_use)
        if used + growth <= limit:
            evict(root, limit - growth)
            used = sum(split.num_bytes for split in cached_splits(root))
        if used + growth > limit:
            raise NodeError(
                f"{root}: {size_text(growth)} more is needed, {size_text(used)} is in use, and the cache's limit is "
                f"{size_text(limit)}: raise the limit ($SCALING_CACHE_LIMIT), or end other runs on this node"
            )
    if (free := shutil.disk_usage(root).free) < growth:
        raise no_room(root, f"{size_text(growth)} more is needed and {size_text(free)} is free")


@contextmanager
def written_to(root: Path) -> Iterator[None]:
    """Convert OS errors about a full or read-only cache disk into a `NodeError`."""
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise no_room(root, "the disk filled up meanwhile; what is complete stays") from error
        inside = Path(os.fsdecode(error.filename or "")).is_relative_to(root)
        if error.errno == errno.EROFS or (inside and isinstance(error, PermissionError)):
            raise NodeError(
                f"{root}: cannot be written ({error.strerror}): name another folder with --cache"
            ) from error
        raise


def no_room(root: Path, what: str) -> NodeError:
    """The error to raise where the disk of a cache is full."""
    remedy = "set SCALING_CACHE to a folder on a larger disk, or remove unused splits with `scaling cache --evict`"
    return NodeError(f"{root}: no room for the node's copy: {what}: {remedy}")
