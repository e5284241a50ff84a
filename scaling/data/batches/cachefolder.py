"""One split's folder in a node's cache: its files' names, how far each array is complete, and who is using it.

``ROOT/<split>-<digest of the whole split>/``::

    flux.f32, error.f32, noisy-<seed>-<level>.f32     (rows, pixels) little-endian float32 from the first row on
    flux.json, …                                      the watermark of each: rows and shards that are complete
    params/part-00000.parquet                         the columns of each shard that are not spectra
    source.json                                       the shard set that it was built from
    whitening-<digest>.npz                            linear maps fitted to the training spectra (``whitening``)
    in-use                                            locked, shared, by every process that maps the split
    lock                                              locked by the one process that builds
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scaling.data.shards.manifest import SPLITS, Manifest, write_json

LOCK, IN_USE, SOURCE = "lock", "in-use", "source.json"
_NAME = re.compile(rf"(?:{'|'.join(SPLITS)})-[0-9a-f]+")


@dataclass(frozen=True, slots=True)
class Watermark:
    """How much of an array's file is complete and checked: what lies beyond is nothing."""

    rows: int = 0
    shards: int = 0

    @classmethod
    def of(cls, folder: Path, array: str) -> Watermark:
        """An array's watermark; nothing where it is missing or unreadable."""
        content = read_json(folder / f"{array}.json")
        try:
            return cls(rows=int(content["rows"]), shards=int(content["shards"]))
        except (KeyError, TypeError, ValueError):
            return cls()

    def save(self, folder: Path, array: str) -> None:
        """Move an array's watermark, at once; its data must be on the disk."""
        write_json(folder / f"{array}.json", asdict(self))


def split_folder(root: Path, manifest: Manifest, split: str) -> Path:
    """A split's folder in a node's cache."""
    return root / f"{split}-{manifest.digest(split, manifest.num_rows(split))}"


def array_path(folder: Path, array: str) -> Path:
    """The file of an array."""
    return folder / f"{array}.f32"


def part_path(folder: Path, shard: int) -> Path:
    """The file of a shard's parameters."""
    return folder / "params" / f"part-{shard:05d}.parquet"


def file_size(path: Path) -> int:
    """Bytes; 0 where there is no such file."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where the file is missing or is not one, as it may be after a power failure."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def is_split_folder(folder: Path) -> bool:
    """Whether a folder is one that a cache has made: nothing else is ever removed from a cache's root."""
    ours = any((folder / name).is_file() for name in (IN_USE, LOCK))
    return ours and _NAME.fullmatch(folder.name) is not None and not folder.is_symlink()


def hold(folder: Path) -> int:
    """Make a split's folder where there is none, and keep it from being evicted.

    Returns:
        A file descriptor: the folder is in use until it is closed, or the process ends.
    """
    while True:
        with suppress(FileExistsError):  # exist_ok would look again, and the folder may be evicted by then
            folder.mkdir(parents=True)
        try:
            held = os.open(folder / IN_USE, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # evicted since the line above
            continue
        fcntl.flock(held, fcntl.LOCK_SH)
        if _is_current(held, folder):
            os.utime(held, ns=(time.time_ns(),) * 2)  # when the split was last used; the kernel's own clock is coarse
            return held
        os.close(held)  # evicted while this waited


def take(folder: Path) -> int | None:
    """Lock a split's folder against use, if nobody uses it.

    Returns:
        A file descriptor to close afterwards, or None: the folder is in use, or gone.
    """
    try:
        taken = os.open(folder / IN_USE, os.O_RDWR | os.O_CREAT, 0o644)
    except FileNotFoundError:
        return None
    with suppress(BlockingIOError):
        fcntl.flock(taken, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_current(taken, folder):
            return taken
    os.close(taken)
    return None


def _is_current(descriptor: int, folder: Path) -> bool:
    """Whether a locked file is still the one in the folder of this name, which may have been evicted and made anew."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(folder / IN_USE))
    except FileNotFoundError:
        return False
