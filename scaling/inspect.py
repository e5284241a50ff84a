"""`scaling inspect`: describes data, models and stores, and reports their problems."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaling.console import Count, uncounted
from scaling.errors import UserError
from scaling.files import Location, human, location
from scaling.folder import Folder
from scaling.study.store import Store, StudyFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of an inspection as text, as JSON values, and as a list of problems (included in both)."""

    text: str
    data: dict[str, Any]
    problems: list[str]


def inspect(paths: list[str], progress: Count = uncounted) -> Finding:
    """Describe HDF5 files, folders of such files, shard sets, model files, stores, or single studies of a store.

    HDF5 files, also from several folders, are described together: how they differ, and which spectra occur in two splits.
    ``progress`` is called with (shards read, total shards) of a set.

    Raises:
        UserError: There is nothing, or nothing of a known kind.
    """
    findings, files = [], []
    for path in paths:
        local = None if "://" in path else Path(path)
        if local is not None:
            _check_kind(local)
        if _is_shard_set(path):
            findings.append(_inspect_shards(location(path), progress))
        elif local is not None and local.suffix == ".safetensors":
            findings.append(_inspect_model(local))
        elif local is not None and (below := [local] if local.is_file() else _spectra_below(local)):
            files += [file for file in below if file not in files]
        else:
            findings.append(_inspect_store(path))
    if files:
        findings.insert(0, _inspect_files(files))
    if len(findings) == 1:
        return findings[0]
    return Finding(
        text="\n".join(finding.text for finding in findings),
        data={"inspected": [finding.data for finding in findings]},
        problems=[problem for finding in findings for problem in finding.problems],
    )


def _check_kind(path: Path) -> None:
    """Reject what is neither a file nor a folder: opening a FIFO or a device would block."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if not (path.is_file() or path.is_dir()):
        raise UserError(f"{path}: neither a regular file nor a folder: give one of those")


def _is_shard_set(path: str) -> bool:
    from scaling.data.shards.manifest import MANIFEST

    folder = Folder.at(path)
    return any(folder.size(name) is not None for name in (MANIFEST, "conversion.json"))


def _spectra_below(folder: Path) -> list[Path]:
    """The files of a folder of splits, `<split>/dataset.h5`, or of a single split."""
    return sorted([*folder.glob("dataset.h5"), *folder.glob("*/dataset.h5")])


def _inspect_files(files: list[Path]) -> Finding:
    from scaling.data.hdf5.describe import describe, describe_set

    found = describe(files[0]) if len(files) == 1 else describe_set(files)
    return Finding(
        text=found.to_text(), data=dataclasses.asdict(found) | {"problems": found.problems}, problems=found.problems
    )


def _inspect_model(path: Path) -> Finding:
    from scaling.inference.trained import open_model

    model = open_model(path)
    data = {"path": str(path), "num_params": model.num_params, "config": dataclasses.asdict(model.model.config)}
    return Finding(text=model.describe(), data=data | {"about": model.about}, problems=[])


def _inspect_shards(folder: Location, progress: Count) -> Finding:
    from scaling.data.shards.manifest import MANIFEST
    from scaling.data.shards.verify import describe_shards, verify

    text = describe_shards(folder)
    data = json.loads(Folder.at(folder).read(MANIFEST) or "{}") | {"path": str(folder)}
    del data["wave"]
    known, damage = data["problems"], verify(folder, progress=progress)
    lines = [f"  PROBLEM: {problem}" for problem in damage]  # the text already lists known damage
    problems = known + damage
    if not problems:
        lines = ["  no problems found"]
    return Finding(text="\n".join([text, *lines]), data=data | {"problems": problems}, problems=problems)


def _inspect_store(uri: str) -> Finding:
    store = Store(uri)
    names = [name for name in store.folders() if StudyFolder(store, name).read_declaration() is not None]
    if not names:  # may be the folder of one study
        store, name = _parent(store)
        names = [name]
        if StudyFolder(store, name).read_declaration() is None:
            raise UserError(
                f"{uri}: neither an HDF5 file, a folder of <split>/dataset.h5, a shard set (manifest.json), "
                "nor a store with studies (study.json)"
            )
    studies = {name: _inspect_study(StudyFolder(store, name)) for name in names}
    return Finding(
        text="\n".join([f"store {store.uri}", *(study.text for study in studies.values())]),
        data={name: study.data for name, study in studies.items()},
        problems=[f"study {name}: {problem}" for name, study in studies.items() for problem in study.problems],
    )


def _parent(store: Store) -> tuple[Store, str]:
    """The store that contains a folder, and the folder's name; options of a URI stay at its end."""
    base, mark, options = store.uri.partition("?") if "://" in store.uri else (store.uri, "", "")
    parent, _, name = base.rstrip("/").rpartition("/")
    return Store(f"{parent or '/'}{mark}{options}"), name


def _inspect_study(folder: StudyFolder) -> Finding:
    rows, unfinished = folder.rows(), folder.unfinished()
    states = Counter(row.status for row in rows)
    counted = ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "none"
    lines, problems = [f"  study {folder.name}: {len(rows)} rows ({counted})"], []
    data: dict[str, Any] = {"rows": len(rows), "states": dict(states), "unfinished": list(unfinished)}
    if rows:
        params, spectra = {row.num_params for row in rows}, {row.num_spectra for row in rows}
        lines.append(
            f"    N {human(min(params))} to {human(max(params))}, D {human(min(spectra))} to {human(max(spectra))}"
        )
        done = [row for row in rows if row.status == "done"]
        if done:  # trials are selected on validation only; report that trial's test error
            best = min(done, key=lambda row: row.val_error)
            val, test = (best.measure.named(error, 4) for error in (best.val_error, best.test_error))
            lines.append(f"    best trial {best.trial}: val {val}, test {test}")
            data["best"] = {name: getattr(best, name) for name in ("trial", best.measure.val, best.measure.test)}
        pins = {row.eval_pin for row in rows}
        if len(pins) > 1:
            problems.append(f"rows were scored on {len(pins)} different evaluation sets and must not be compared")
    lines += [f"    PROBLEM: {problem}" for problem in problems]
    lines += [f"    begun, not finished: {key} ({last})" for key, last in unfinished.items()]
    lines.append(f"    report: {'yes' if folder.store.read(f'{folder.name}/report/index.html') else 'not yet'}")
    return Finding(text="\n".join(lines), data=data | {"problems": problems}, problems=problems)
