"""A node's local memory map of the shards it needs: expanded once, mapped by every trial on the node.

``ROOT/<digest of split>/<shards>/`` holds ``flux.npy``, ``error.npy`` and ``params.parquet`` of the first shards of a split,
and one ``noisy-….npy`` for each fixed noise draw. A folder or file gets its name when it is complete, under a lock; a
longer map serves every shorter prefix.
"""

import os
import shutil
import tempfile
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from filelock import FileLock
from jaxtyping import Float32
from numpy import ndarray

from scaling.data.manifest import Manifest, Shard, temporary_name
from scaling.data.seeds import stable_seed
from scaling.data.shardfile import ERROR, FLUX, Checksum, column_values, row_groups
from scaling.errors import UserError

NOISE_BLOCK_ROWS = 4096
"""Rows whose noise is drawn together: part of what a noise seed means."""
PARAMS = "params.parquet"
FILES = ("flux.npy", "error.npy", PARAMS)


@dataclass(frozen=True, slots=True, eq=False)
class MappedSplit:
    """The first rows of a split, mapped read-only from local disk.

    Attributes:
        flux: Noise-free flux, (rows, pixels) float32.
        error: One standard deviation of each pixel's noise, (rows, pixels) float32.
        params: ``row_id`` and the parameter columns, one row a spectrum.
    """

    flux: Float32[ndarray, "row pixel"]
    error: Float32[ndarray, "row pixel"]
    params: pd.DataFrame


def default_cache_root() -> Path:
    """``$SCALING_CACHE``, or a folder of the system's temporary folder."""
    return Path(os.environ.get("SCALING_CACHE") or Path(tempfile.gettempdir()) / "spectral-scaling-cache")


def map_split(shards_dir: Path, split: str, num_rows: int, cache_root: Path | None = None) -> MappedSplit:
    """Map the first ``num_rows`` rows of a split, expanding their shards first where this node has not yet.

    Args:
        shards_dir: The shard set.
        split: ``train``, ``val`` or ``test``.
        num_rows: Rows wanted.
        cache_root: Where the maps are, on a disk of this node; ``default_cache_root()`` if not given.

    Raises:
        UserError: The split is shorter, a shard is damaged, or the disk has no room.
    """
    folder = _ensure_map(Manifest.load(shards_dir), split, num_rows, cache_root or default_cache_root())
    return MappedSplit(
        flux=np.load(folder / "flux.npy", mmap_mode="r")[:num_rows],
        error=np.load(folder / "error.npy", mmap_mode="r")[:num_rows],
        params=pd.read_parquet(folder / PARAMS).iloc[:num_rows],
    )


def map_noisy(
    shards_dir: Path, split: str, num_rows: int, cache_root: Path | None = None, *, seed: int, level: float
) -> Float32[ndarray, "row pixel"]:
    """Map the first ``num_rows`` spectra with one fixed noise draw each: max(flux, 0) + level · error · N(0, 1).

    The draw of a row is a function of (seed, split, row), by PyTorch's generator on the CPU.

    Args:
        shards_dir: The shard set.
        split: ``train``, ``val`` or ``test``.
        num_rows: Rows wanted.
        cache_root: Where the maps are, on a disk of this node; ``default_cache_root()`` if not given.
        seed: Of the noise.
        level: Multiplies the error; 1 is the spectra's own noise.

    Returns:
        (num_rows, pixels) float32, read-only.

    Raises:
        UserError: As ``map_split``.
    """
    folder = _ensure_map(Manifest.load(shards_dir), split, num_rows, cache_root or default_cache_root())
    path = folder / f"noisy-{seed}-{float(level)!r}.npy"
    if not path.exists():
        with _lock(folder.parent):
            if not path.exists():
                _write_noisy(folder, path, split, seed, level)
    return np.load(path, mmap_mode="r")[:num_rows]


def _ensure_map(manifest: Manifest, split: str, num_rows: int, cache_root: Path) -> Path:
    """The folder of a complete map of at least ``num_rows`` rows."""
    shards = manifest.leading_shards(split, num_rows)
    base = cache_root / f"{split}-{manifest.digest(split, manifest.num_rows(split))}"
    if folder := _complete_map(base, len(shards)):
        return folder
    base.mkdir(parents=True, exist_ok=True)
    folder = base / f"{len(shards):06d}"
    with _lock(base):
        if existing := _complete_map(base, len(shards)):
            return existing
        _expand(manifest, shards, folder)
    return folder


def _complete_map(base: Path, num_shards: int) -> Path | None:
    """The shortest map of at least ``num_shards`` shards."""
    folders = sorted(folder for folder in base.glob("[0-9]*") if folder.is_dir() and folder.name.isdigit())
    whole = (folder for folder in folders if all((folder / name).is_file() for name in FILES))  # /tmp may be tidied
    return next((folder for folder in whole if int(folder.name) >= num_shards), None)


def _lock(base: Path) -> AbstractContextManager[object]:
    """One writer at a time of a split's maps, over all processes of the node; released if its holder dies."""
    return FileLock(base / "lock")


def _expand(manifest: Manifest, shards: list[Shard], folder: Path) -> None:
    """Write the map of some shards beside ``folder`` and rename it, checking every shard against the manifest."""
    shape = (sum(shard.rows for shard in shards), manifest.pixels)
    for leftover in (folder, *folder.parent.glob(".*.tmp")):
        shutil.rmtree(leftover, ignore_errors=True)
    _require_room(folder.parent, 2 * 4 * shape[0] * shape[1])
    temporary = temporary_name(folder)
    temporary.mkdir()
    try:
        params = []
        with open(temporary / "flux.npy", "wb") as flux_file, open(temporary / "error.npy", "wb") as error_file:
            _write_header(flux_file, shape)
            _write_header(error_file, shape)
            for shard in shards:
                checksum = Checksum()
                for table in row_groups(manifest.dest / shard.file):
                    checksum.update(table)
                    flux_file.write(column_values(table, FLUX).data)
                    error_file.write(column_values(table, ERROR).data)
                    params.append(table.drop_columns([FLUX, ERROR]).replace_schema_metadata())
                if checksum.hexdigest() != shard.checksum:
                    path = manifest.dest / shard.file
                    raise UserError(
                        f"{path} differs from the manifest's checksum: remove this shard and manifest.json, and run `scaling shard` again"
                    )
        pq.write_table(pa.concat_tables(params), temporary / PARAMS)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_noisy(folder: Path, path: Path, split: str, seed: int, level: float) -> None:
    """Write the noisy spectra of a whole map beside ``path`` and rename them."""
    flux, error = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("flux", "error"))
    _require_room(folder, flux.nbytes)
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)
    temporary = temporary_name(path)
    try:
        with open(temporary, "wb") as file:
            _write_header(file, flux.shape)
            for block, start in enumerate(range(0, len(flux), NOISE_BLOCK_ROWS)):
                rows = slice(start, min(start + NOISE_BLOCK_ROWS, len(flux)))
                generator = torch.Generator().manual_seed(stable_seed("fixed noise", seed, split, block))
                # A whole block always: how PyTorch draws its last few numbers depends on how many are asked for.
                draw = torch.randn(NOISE_BLOCK_ROWS, flux.shape[1], generator=generator).numpy()
                noisy = draw[: rows.stop - start] * error[rows]
                noisy *= np.float32(level)
                noisy += np.maximum(flux[rows], 0.0)
                file.write(noisy.data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    """Begin a float32 ``.npy`` file whose data follow by plain writes, which fail cleanly on a full disk."""
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": tuple(shape)})


def _require_room(folder: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise UserError(
            f"{folder}: a memory map of {num_bytes / 1e9:.1f} GB is needed and {free / 1e9:.1f} GB is free: "
            "set SCALING_CACHE to a folder on a larger disk"
        )
