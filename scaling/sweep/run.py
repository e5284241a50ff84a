"""A study from end to end: data, sweep, table, report. Running it again does only what has no result yet."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock

from scaling.errors import UserError
from scaling.files import json_bytes
from scaling.results import Row, to_table
from scaling.retry import patient
from scaling.study.declaration import Study, stable
from scaling.study.lease import lease
from scaling.study.prepare import is_prepared, keep_limit, prepare_data, shards_path
from scaling.study.store import Store, StudyFolder
from scaling.sweep.cluster import ray_cluster
from scaling.sweep.sweep import Sweep, run_sweep


def run_study(
    study: Study, store_uri: str, *, address: str | None, cache: Path, retry: bool, say: Callable[[str], None]
) -> list[Row]:
    """Do everything of a study that is not done; returns its rows.

    Args:
        study: the declaration.
        store_uri: where results are kept.
        address: a Ray cluster; None starts one on this machine.
        cache: folder for the nodes' memory maps.
        retry: forget the rows of failed trials first, so that they are tried again.
        say: told what happens, a line at a time.

    Raises:
        UserError: for anything the user has to correct first, before a trial is started.
    """
    store, cache = Store(store_uri), cache.absolute()
    store.check_writable()
    folder = StudyFolder(store, study.name)
    with _exclusive(folder, say), patient():
        if retry:
            _forget_failed(folder)
        sweep = Sweep.prepare(study, folder, shards_path(study, store), cache) if is_prepared(study, store) else None
        if sweep is None or sweep.remaining():
            say(f"study {study.name}: connecting to Ray")
            with ray_cluster(address):
                sweep = sweep or Sweep.prepare(study, folder, prepare_data(study, store, say), cache)
                sweep.check()  # a declaration that disagrees with the store is refused before it replaces study.json
                folder.write_declaration(json_bytes(stable(study)))
                say(f"sweep: {sweep.remaining()} trials to run")
                run_sweep(sweep, say)
                if left := sweep.remaining():
                    say(f"stopped with {left} trials left; the same command continues")
                    return sweep.rows()
        else:
            say(f"study {study.name}: all {len(sweep.rows())} trials have their rows")
        page = write_study_report(study, folder)
        say(f"report: {page}")
        return sweep.rows()


def collect(study: Study, folder: StudyFolder) -> list[Row]:
    """Gather the rows of the study's cells into `results.parquet`, and return them.

    Which cells are held out follows from the whole grid: it is taken from the declaration as it is now, so that a study
    that has grown since holds out its new edge and not its old one.

    Raises:
        UserError: There are no rows.
    """
    cells = {cell.key: cell for cell in study.cells()}
    rows = [
        dataclasses.replace(row, held_out=study.held_out(cells[row.cell]))
        for row in folder.rows_with_branches()
        if row.cell in cells
    ]
    if not rows:  # a mistyped store is not made
        raise UserError(f"{folder.store.locate(folder.name)}: no rows yet; run the study first, or correct --store")
    folder.write_table(rows)
    return rows


def write_study_report(study: Study, folder: StudyFolder) -> str:
    """Collect the rows, fit the law and write the report into the store; returns where its page is.

    Raises:
        UserError: if there are no rows.
    """
    from analysis.anchors import parse_anchor
    from analysis.report import write_report
    from analysis.snr import read_limit

    rows = collect(study, folder)
    keep_limit(study, folder)
    with tempfile.TemporaryDirectory(prefix="spectral-scaling-report-") as scratch:
        limit, known = Path(scratch) / "limit.json", folder.read_limit()
        if known is not None:
            limit.write_bytes(known)
        write_report(
            to_table(rows).to_pandas(),
            Path(scratch) / "report",
            limit=None if known is None else read_limit(limit),
            anchors=[parse_anchor(content.decode(), place) for place, content in folder.read_anchors()],
        )
        return folder.publish_report(Path(scratch) / "report")


def _forget_failed(folder: StudyFolder) -> None:
    for row in folder.rows():
        if row.status == "failed":
            folder.trial(row.trial).delete_row()


@contextlib.contextmanager
def _exclusive(folder: StudyFolder, say: Callable[[str], None]) -> Iterator[None]:
    """Hold a study for one run: by a lock that goes with the process, however it ends, or on an object store by a lease."""
    if folder.store.local is None:
        with lease(folder.store, folder.running_path, say):
            yield
        return
    path = folder.store.local / folder.running_path
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise UserError(
            f"{path.parent}: another `scaling run` is at work on this study; see `scaling status`"
        ) from error
    try:
        yield
    finally:
        lock.release()
