"""A study from end to end: data, sweep, table, report. A repeated run does only what has no result yet."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock

from scaling.errors import UserError
from scaling.files import Location, json_bytes
from scaling.results import Row, to_table
from scaling.retry import patient
from scaling.study.declaration import Study, stable
from scaling.study.lease import lease
from scaling.study.prepare import is_prepared, keep_limit, prepare_data, shards_path
from scaling.study.store import Store, StudyFolder
from scaling.sweep.baselines import BaselineTask
from scaling.sweep.cluster import joins, ray_cluster
from scaling.sweep.quiet import logged_apart, stop_signals
from scaling.sweep.rates import Rates, bracketed
from scaling.sweep.sweep import Sweep


def run_study(
    study: Study,
    store_uri: str,
    *,
    address: str | None,
    cache: Path,
    retry: bool,
    say: Callable[[str], None],
    callbacks: Callable[[], list[Any]] = list,
) -> list[Row]:
    """Run everything of a study that has no result yet; returns its rows.

    Args:
        study: The declaration.
        store_uri: Location of the results.
        address: A Ray cluster; None starts one on this machine.
        cache: Folder for the nodes' memory maps.
        retry: Whether to delete the rows of failed trials first, so that they are retried.
        say: Called with each line of progress.
        callbacks: Creates Tune callbacks, once Ray may be imported.

    Raises:
        UserError: Anything the user must correct, before a trial is started.
    """
    store, cache = Store(store_uri), cache.absolute()
    store.check_writable()
    folder = StudyFolder(store, study.name)

    def begin(shards: Location) -> tuple[Sweep, Rates, list[BaselineTask]]:
        sweep = Sweep.prepare(study, folder, shards, cache)
        return sweep, *sweep.left(retry=retry)  # refuses a contradiction to the store before anything there is replaced

    with _exclusive(folder, say), patient(), _stoppable(folder):
        begun = begin(shards_path(study, store)) if is_prepared(study, store) else None
        done = begun is not None and not (begun[1].remaining() or begun[2])
        if not done:
            say(f"study {study.name}: connecting to Ray")
            with ray_cluster(address), stop_signals():
                sweep, rates, tasks = begun or begin(prepare_data(study, store, say))
                folder.write_declaration(json_bytes(stable(study)))
                if retry:
                    _forget_failed(folder)
                _run(sweep, rates, tasks, say, callbacks, may_grow=joins(address) is not None)
        rows = collect(study, folder)
        whole = [row for row in rows if row.budget_share == 1.0]
        if done:
            say(f"study {study.name}: all {len(whole)} trials have their rows")
        write_study_report(study, folder, rows, say)
        return whole


def _run(
    sweep: Sweep,
    rates: Rates,
    tasks: list[BaselineTask],
    say: Callable[[str], None],
    callbacks: Callable[[], list[Any]],
    *,
    may_grow: bool,
) -> None:
    from scaling.sweep.tuning import run_sweep  # imports Ray, after its settings are in place

    left, log = rates.remaining(), sweep.folder.journal.with_name("ray.log")
    trials, baselines = sum(count for _, count in left), sum(len(task.fingerprints) for task in tasks)
    also = f", {baselines} baselines" if baselines else ""
    say(
        f"sweep: {len(left)} of {len(sweep.study.cells())} cells to do, about {trials} trials{also}; what Ray says: {log}"
    )
    with logged_apart(log):
        run_sweep(sweep, rates, tasks, say, callbacks(), may_grow=may_grow)


@contextlib.contextmanager
def _stoppable(folder: StudyFolder) -> Iterator[None]:
    """Report what is kept when a person or a batch system stops the run."""
    try:
        with stop_signals():
            yield
    except KeyboardInterrupt:
        rows, begun = len(folder.rows()), len(folder.unfinished())
        raise KeyboardInterrupt(
            f"stopped; {rows} trials have their rows and {begun} resume from their last checkpoint: the same command continues"
        ) from None


def collect(study: Study, folder: StudyFolder) -> list[Row]:
    """Write the rows of the study's cells into `results.parquet`, and return them; see `gather`."""
    rows = gather(study, folder)
    folder.write_table(rows)
    return rows


def gather(study: Study, folder: StudyFolder) -> list[Row]:
    """The current rows of the study's cells.

    Which cells are held out, and whether each best learning rate is bracketed, is derived from the current grid and all
    current rows: a study that has grown holds out its new edge and no longer its old one.

    Raises:
        UserError: There are no rows.
    """
    found = folder.rows_with_branches()
    rates = Rates(study, [row for row in found if row.budget_share == 1.0])
    bracket = {cell: bracketed(rates.rows[rates.first(cell)]) for cell in rates.rows}
    baselines, rows = {cell.key for cell in study.baseline_cells()}, []
    for row in found:
        if cell := rates.cells.get(row.cell):
            rows.append(dataclasses.replace(row, held_out=study.held_out(cell), lr_bracketed=bracket[cell]))
        elif row.cell in baselines:
            rows.append(row)
    if not rows:  # do not create a mistyped store
        raise UserError(f"{folder.store.locate(folder.name)}: no rows yet; run the study first, or correct --store")
    return rows


def write_study_report(study: Study, folder: StudyFolder, rows: list[Row], say: Callable[[str], None]) -> str:
    """Fit the law to the collected rows and write the report into the store; returns the location of its page.

    The result is printed in a few lines, with the location of the page and how to open it.
    """
    from analysis.points.anchors import parse_anchor
    from analysis.points.limit import parse_limit
    from analysis.report.page import write_report
    from analysis.report.pictures import TRIAL_CURVES

    if unknown := keep_limit(study, folder):
        say(f"the report is without an information limit: {unknown}")
    with tempfile.TemporaryDirectory(prefix="spectral-scaling-report-") as scratch:
        known = folder.read_limit()
        write_report(
            to_table(rows).to_pandas(),
            Path(scratch) / "report",
            limit=None if known is None else parse_limit(known, folder.store.locate(folder.limit_path)),
            anchors=[parse_anchor(content, place) for place, content in folder.read_anchors()],
            curves=TRIAL_CURVES,
        )
        page = folder.publish_report(Path(scratch) / "report")
        for line in json.loads((Path(scratch) / "report" / "fit.json").read_bytes())["answer"]:
            say(line)
    how = "open it in a browser" if folder.store.local else "`scaling dashboard` with this STUDY and --store serves it"
    say(f"report: {page} ({how})")
    return page


def _forget_failed(folder: StudyFolder) -> None:
    for row in folder.rows():
        if row.status == "failed":
            folder.trial(row.trial).delete_row()


@contextlib.contextmanager
def _exclusive(folder: StudyFolder, say: Callable[[str], None]) -> Iterator[None]:
    """Lock a study for one run: by a lock that is released when the process ends, or by a lease on an object store."""
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
