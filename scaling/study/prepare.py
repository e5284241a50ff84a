"""Preparation of a study's spectra: locates its shard set, and builds it if missing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

from scaling.console import lines
from scaling.data.batches.evaluation import evaluation_pin
from scaling.data.information import InformationLimit, information_limit
from scaling.data.shards.convert import convert
from scaling.data.shards.manifest import MANIFEST, Manifest, Source
from scaling.data.simulated.writer import Simulation, write_simulation
from scaling.errors import UserError
from scaling.files import Location, json_bytes, location
from scaling.folder import Folder
from scaling.parse import parse, parse_object
from scaling.study.declaration import Sources, Study, stable
from scaling.study.store import Store, StudyFolder


def shards_path(study: Study, store: Store) -> Location:
    """Location of the study's shard set, existing or not; absolute, because workers have other working directories."""
    source = study.data.source
    if isinstance(source, Simulation):
        return store.simulated(_digest(source)) / "shards"
    return location(Folder.at(source.shards).uri)


def is_prepared(study: Study, store: Store) -> bool:
    """Whether the study's shard set is complete."""
    return Folder.at(shards_path(study, store)).size(MANIFEST) is not None


def prepare_data(study: Study, store: Store, progress: Callable[[str], None]) -> Location:
    """Simulate and shard missing data, on the cluster that Ray is connected to; returns the shard set.

    Raises:
        UserError: Source files are missing, or cannot be converted.
    """
    shards, source = shards_path(study, store), study.data.source
    if is_prepared(study, store):
        return shards
    order: dict[str, Any] = {}
    if isinstance(source, Simulation):
        progress(f"simulating {source.train:,} + {source.val:,} + {source.test:,} spectra of {source.pixels} pixels")
        files = write_simulation(
            store.simulated(_digest(source)) / "hdf5", source, lines("spectra", progress), parallel=True
        )
    else:
        files = {"train": list(source.train), "val": [source.val], "test": [source.test]}
        missing = [path for paths in files.values() for path in paths if not path.is_file()]
        if missing:
            raise UserError(f"{missing[0]}: no such file, named in study {study.name}; correct Study.data.source")
        order = {"order": source.order, "order_seed": source.order_seed}
    progress(f"converting {sum(map(len, files.values()))} HDF5 files to Parquet shards in {shards}")
    manifest = convert(
        shards,
        train=files["train"],
        val=files["val"],
        test=files["test"],
        **order,
    )
    for problem in manifest.problems:
        progress(f"WARNING: {problem}")
    return shards


def keep_limit(study: Study, folder: StudyFolder) -> str:
    """Store the information limit of a study's test spectra, once; returns why there is none, or "".

    A classification has none, nor does a study without noise. `scaling limit SHARDS --json` writes the file manually.
    """
    rules = study.data.rules
    if rules.boundary is not None or rules.noise_level == 0 or not is_prepared(study, folder.store):
        return ""
    shards = shards_path(study, folder.store)
    pin = evaluation_pin(shards, rules)
    if _is_limit(folder.read_limit() or b"", pin):
        return ""
    try:
        limit = information_limit(shards, label=rules.label, noise_level=rules.noise_level)
    except UserError as error:  # not needed for any result
        return str(error)
    folder.write_limit(json_bytes(limit.to_json() | {"eval_pin": pin}))
    return ""


def _is_limit(kept: bytes, pin: str) -> bool:
    try:
        fields = parse_object(kept, "limit.json", "")
        return fields.pop("eval_pin", None) == pin and bool(parse(InformationLimit, fields, "limit.json", ""))
    except UserError:  # damaged: it is recomputed
        return False


def check_sources(study: Study, manifest: Manifest) -> None:
    """Compare a study's declared source files with those of its shard set, by number and size.

    Missing files are not compared, since sources may be deleted after conversion.

    Raises:
        UserError: The shard set was built from other files, or in another order.
    """
    source = study.data.source
    if not isinstance(source, Sources):
        return
    declared = {"train": source.train, "val": (source.val,), "test": (source.test,)}
    for split, paths in declared.items():
        made_from = manifest.sources[split]
        pairs = list(zip(paths, made_from, strict=False))
        odd = [(path, made) for path, made in pairs if path.is_file() and path.stat().st_size != made.size]
        if len(paths) != len(made_from) or odd:
            path, made = odd[0] if odd else (f"{len(paths)} files", f"{len(made_from)} files")
            what = f"{made.path} of {made.size} bytes" if isinstance(made, Source) else made
            raise UserError(
                f"Sources.{split}: {path} declared, but {manifest.dest} was made from {what}: name another Sources.shards"
            )
    if source.order != "auto" and manifest.order.kind != source.order:
        raise UserError(
            f"Sources.order = {source.order!r}: {manifest.dest} is in the order {manifest.order.kind!r}: name another Sources.shards"
        )


def _digest(simulation: Simulation) -> str:
    return hashlib.sha256(json.dumps(stable(simulation), sort_keys=True).encode()).hexdigest()[:12]
