"""A study's spectra: where its shards are, and making them where they are not there yet."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from scaling.data.manifest import MANIFEST
from scaling.data.shards import convert
from scaling.data.simulate import Simulation, write_simulation
from scaling.errors import UserError
from scaling.study.declaration import Study, stable
from scaling.study.store import Store


def shards_path(study: Study, store: Store) -> Path:
    """Where the study's shard set is, or will be; absolute, because workers run in folders of their own."""
    source = study.data.source
    return store.simulated(_digest(source)) / "shards" if isinstance(source, Simulation) else source.shards.absolute()


def is_prepared(study: Study, store: Store) -> bool:
    """Whether the study's shard set is complete."""
    return (shards_path(study, store) / MANIFEST).is_file()


def prepare_data(study: Study, store: Store, progress: Callable[[str], None]) -> Path:
    """Simulate and shard what is missing, on the cluster that Ray is connected to; returns the shard set.

    Raises:
        UserError: if source files are missing, or cannot be converted.
    """
    shards, source = shards_path(study, store), study.data.source
    if is_prepared(study, store):
        return shards
    if isinstance(source, Simulation):
        progress(f"simulating {source.train:,} + {source.val:,} + {source.test:,} spectra of {source.pixels} pixels")
        files = write_simulation(store.simulated(_digest(source)) / "hdf5", source)
    else:
        files = {"train": list(source.train), "val": [source.val], "test": [source.test]}
        missing = [path for paths in files.values() for path in paths if not path.is_file()]
        if missing:
            raise UserError(f"{missing[0]}: no such file, named in study {study.name}; correct Study.data.source")
    progress(f"converting {sum(map(len, files.values()))} HDF5 files to Parquet shards in {shards}")
    convert(
        shards, train=files["train"], val=files["val"], test=files["test"], on_progress=milestones("shards", progress)
    )
    return shards


def milestones(what: str, progress: Callable[[str], None]) -> Callable[[int, int], None]:
    """A counter that speaks at each tenth of the way, however many steps there are."""

    def count(done: int, total: int) -> None:
        if done * 10 // total > (done - 1) * 10 // total:
            progress(f"{what} {done}/{total}")

    return count


def _digest(simulation: Simulation) -> str:
    return hashlib.sha256(json.dumps(stable(simulation), sort_keys=True).encode()).hexdigest()[:12]
