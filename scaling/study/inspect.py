"""`scaling inspect` and `scaling status`: what is there, in words, and what is wrong with it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

from scaling.errors import UserError
from scaling.study.declaration import Study
from scaling.study.plan import human
from scaling.study.progress import Progress
from scaling.study.store import Store, StudyFolder


def inspect(path: str) -> tuple[str, dict[str, Any]]:
    """Describe an HDF5 file, a shard set, a store or one study of a store; as text and as JSON values.

    Raises:
        UserError: if there is nothing, or nothing known.
    """
    from scaling.data.describe import describe
    from scaling.data.manifest import MANIFEST
    from scaling.data.shards import describe_shards

    local = None if "://" in path else Path(path)
    if local is not None and not local.exists():
        raise UserError(f"{path}: no such file or folder")
    if local is not None and local.is_file():
        description = describe(local)
        return description.to_text(), dataclasses.asdict(description)
    if local is not None and ((local / MANIFEST).is_file() or (local / "conversion.json").is_file()):
        text = describe_shards(local)
        return text, {"path": path, "text": text}
    return _inspect_store(path)


def study_status(folder: StudyFolder, study: Study) -> tuple[str, dict[str, Any]]:
    """How far a study is: trials and cells done, what went wrong, what is under way."""
    rows = folder.rows()
    keys = {cell.key for cell in study.cells()}
    mine = [row for row in rows if row.cell in keys]
    lines = [f"{study.name}: {Progress(study, mine, {}, print).line()}"]
    lines += [f"  {row.trial}: {row.status}, {row.error}" for row in mine if row.status != "done"]
    under_way = folder.unfinished()
    lines += [f"  {key}: begun, not finished ({last})" for key, last in under_way.items()]
    states = Counter(row.status for row in mine)
    total = len(keys) * study.search.trials
    return "\n".join(lines), {"trials": total, "rows": len(mine), "states": dict(states), "unfinished": list(under_way)}


def _inspect_store(uri: str) -> tuple[str, dict[str, Any]]:
    store = Store(uri)
    names = [name for name in store.folders() if StudyFolder(store, name).read_declaration() is not None]
    if not names:  # perhaps the folder of one study
        parent, _, name = store.uri.rstrip("/").rpartition("/")
        store, names = Store(parent or "/"), [name]
        if StudyFolder(store, name).read_declaration() is None:
            raise UserError(
                f"{uri}: neither an HDF5 file, a shard set (manifest.json), nor a store with studies (study.json)"
            )
    lines, found = [f"store {store.uri}"], {}
    for name in names:
        folder = StudyFolder(store, name)
        rows = folder.rows()
        states = Counter(row.status for row in rows)
        lines.append(
            f"  study {name}: {len(rows)} rows ({', '.join(f'{n} {s}' for s, n in sorted(states.items())) or 'none'})"
        )
        found[name] = {"rows": len(rows), "states": dict(states), "unfinished": list(folder.unfinished())}
        if rows:
            params, spectra = {row.num_params for row in rows}, {row.num_spectra for row in rows}
            best = min((row.test_mae_dex for row in rows if row.status == "done"), default=None)
            lines.append(
                f"    N {human(min(params))} to {human(max(params))}, D {human(min(spectra))} to {human(max(spectra))}"
                + (f", best test MAE {best:.4f} dex" if best is not None else "")
            )
            pins = {row.eval_pin for row in rows}
            if len(pins) > 1:
                lines.append(
                    f"    PROBLEM: rows were scored on {len(pins)} different evaluation sets and must not be compared"
                )
        lines += [f"    begun, not finished: {key} ({last})" for key, last in folder.unfinished().items()]
        lines.append(f"    report: {'yes' if store.read(f'{name}/report/index.html') else 'not yet'}")
    return "\n".join(lines), found
