"""What a node's cache holds, and how it is kept below a size: the least recently used splits go, never one in use."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from scaling.data.batches.cachefolder import (
    IN_USE,
    LOCK,
    SOURCE,
    Watermark,
    file_size,
    is_split_folder,
    read_json,
    take,
)
from scaling.errors import UserError

GB = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedSplit:
    """A split in the cache.

    Attributes:
        folder: Its folder.
        dataset: The shard set that it was built from; ``?`` where that is not known.
        split: ``train``, ``val`` or ``test``.
        arrays: Rows of each array that are complete.
        num_bytes: Of all its files, with what is reserved for a build under way.
        last_used: When a process last mapped it, seconds since 1970.
        in_use: Whether a process is using it.
    """

    folder: Path
    dataset: str
    split: str
    arrays: dict[str, int]
    num_bytes: int
    last_used: float
    in_use: bool


def cached_splits(root: Path) -> list[CachedSplit]:
    """The splits in a cache, least recently used first."""
    splits = []
    for folder in filter(is_split_folder, root.iterdir() if root.is_dir() else ()):
        with suppress(FileNotFoundError):  # evicted by another process meanwhile
            splits.append(_examine(folder))
    return sorted(splits, key=lambda split: split.last_used)


def evict(root: Path, limit: int | None = None) -> list[CachedSplit]:
    """Remove splits that no process uses, least recently used first.

    Args:
        root: The cache.
        limit: Stop when the cache is no larger than so many bytes; all unused splits go without it.

    Returns:
        What was removed.
    """
    for leftover in root.glob(".evicted-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    splits = cached_splits(root)
    total, removed = sum(split.num_bytes for split in splits), []
    for split in splits:
        if limit is not None and total <= limit:
            break
        if _remove(split.folder):
            total -= split.num_bytes
            removed.append(split)
    return removed


def make_room(root: Path, growth: int, limit: int) -> None:
    """Evict what is needed for a cache to grow by ``growth`` bytes and stay within a limit, all in bytes.

    Raises:
        UserError: It cannot fit beside what is in use; nothing has been evicted then.
    """
    used = sum(split.num_bytes for split in cached_splits(root) if split.in_use)
    if used + growth <= limit:
        evict(root, limit - growth)
        used = sum(split.num_bytes for split in cached_splits(root))
    if used + growth > limit:
        raise UserError(
            f"{root}: {growth / GB:.3g} GB more is needed, {used / GB:.3g} GB is in use, and the cache's limit is {limit / GB:.3g} GB: "
            "raise the limit ($SCALING_CACHE_LIMIT), or end other runs on this node"
        )


def describe_cache(root: Path) -> str:
    """What a cache holds, as a plain table."""
    splits = cached_splits(root)
    lines = [f"{root}: {len(splits)} splits, {sum(split.num_bytes for split in splits) / GB:.3f} GB"]
    for split in reversed(splits):
        arrays = ", ".join(f"{name} ({rows:,} rows)" for name, rows in split.arrays.items()) or "nothing complete"
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(split.last_used))
        state = "in use" if split.in_use else f"last used {used}"
        lines.append(f"  {split.num_bytes / GB:9.3f} GB  {split.split:<5}  {state}  {split.dataset}: {arrays}")
    return "\n".join(lines)


def _examine(folder: Path) -> CachedSplit:
    # Before taking the folder, which gives one of an older format the file that says when it was used.
    last_used = (folder / (IN_USE if (folder / IN_USE).exists() else LOCK)).stat().st_mtime
    taken = take(folder)
    if taken is not None:
        os.close(taken)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return CachedSplit(
        folder=folder,
        dataset=str(read_json(folder / SOURCE).get("dataset", "?")),
        split=folder.name.rpartition("-")[0],
        arrays={path.stem: Watermark.of(folder, path.stem).rows for path in files if path.suffix == ".f32"},
        num_bytes=sum(map(file_size, files)),
        last_used=last_used,
        in_use=taken is None,
    )


def _remove(folder: Path) -> bool:
    """Remove a split's folder unless it is in use; its name goes at once, so that nobody maps half of it."""
    taken = take(folder)
    if taken is None:
        return False
    grave = folder.with_name(f".evicted-{uuid.uuid4().hex}")
    try:
        os.rename(folder, grave)
    finally:
        os.close(taken)
    shutil.rmtree(grave, ignore_errors=True)
    return True
