"""Optuna's journal: a view of the sweep for optuna-dashboard, rebuilt from the authoritative rows in the store.

It holds one Optuna study per cell, named "<study>/<cell>", and one for the whole sweep, with the study's name, whose
parameters are the size, the number of spectra, the learning rate and the seed. Only the driver writes it.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution, distribution_to_json
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import TrialState, create_trial

from scaling.model.ladder import count_parameters
from scaling.results import Row
from scaling.study.declaration import Cell, Study

LOCK_SECONDS = 5
"""Maximum wait for a lock left by a killed driver."""

MAX_NUMBER = 1000
"""Maximum number of trials per cell that are looked up: far more than a search uses."""

RATES = 1e3
"""Learning rates are shown up to this factor above and below the declared ones."""

LOG = logging.getLogger(__name__)
Params = dict[str, Any]
optuna.logging.set_verbosity(optuna.logging.WARNING)


class Journal:
    """Mirrors the state of every trial: WAITING for another attempt, RUNNING, COMPLETE, PRUNED or FAIL.

    No call scans the finished trials, so the cost is the same after 10 and after 2,000. A failing call ends the view with a
    warning, not the sweep: the next run rebuilds it.
    """

    def __init__(self, study: Study, path: Path, rows: list[Row]) -> None:
        """Open the journal and bring it up to date with the rows.

        A journal that is unreadable, truncated by a full disk, or has other content is renamed to "*.damaged" and rebuilt.
        """
        self.study, self.path, self.broken = study, path, False
        self.sizes = {width: count_parameters(study.model(width)).reach_loss for width in study.widths}
        try:
            self._open(rows)
        except OSError:  # an error of the disk, not of the content
            raise
        except Exception:  # Optuna validates nothing, so damaged content raises anything
            path.replace(path.with_name(path.name + ".damaged"))
            self._open(rows)

    def running(self, cell: Cell, number: int, lr: float) -> None:
        """Show a trial as running; one that already waits or runs is not added twice."""
        self._show(self._running, cell, number, lr)

    def _running(self, cell: Cell, number: int, lr: float) -> None:
        self._cell(cell).run(cell.trial(number), {"lr": lr}, {"number": number})
        self.sweep.run(cell.trial(number), self._params(cell, lr), _about(cell, number))

    def finished(self, cell: Cell, number: int, row: Row) -> None:
        """Show the result of a trial."""
        self._show(self._finished, cell, number, row)

    def _finished(self, cell: Cell, number: int, row: Row) -> None:
        self._cell(cell).finish(cell.trial(number), row, {"lr": row.lr}, {"number": number}, {})
        results = {"test_error": row.test_error, "seconds": row.wall_seconds, "mfu": row.mfu}
        known = {name: value for name, value in results.items() if math.isfinite(value)}
        self.sweep.finish(cell.trial(number), row, self._params(cell, row.lr), _about(cell, number), known)

    def lost(self, cell: Cell, number: int) -> None:
        """Show a trial as waiting, after an attempt that ended without a row and will be repeated."""
        self._show(self._lost, cell, number)

    def _lost(self, cell: Cell, number: int) -> None:
        for view in (self._cell(cell), self.sweep):
            view.wait(cell.trial(number))

    def close(self) -> None:
        """Show running trials as waiting, since the driver ends."""
        self._show(self._close)

    def _close(self) -> None:
        for view in (*self.cells.values(), self.sweep):
            view.wait_all()

    def _show(self, change: Callable[..., None], *what: Any) -> None:
        if self.broken:
            return
        try:
            change(*what)
        except Exception as error:  # a full disk, or a line truncated by another process
            self.broken = True
            LOG.warning("%s: cannot be kept up (%s); the sweep continues, the next run rebuilds it", self.path, error)

    def _open(self, rows: list[Row]) -> None:
        lock = JournalFileSymlinkLock(str(self.path), grace_period=LOCK_SECONDS)
        self.storage = JournalStorage(JournalFileBackend(str(self.path), lock))
        self.sweep = self._view(self.study.name, self._space(), {"question": self.study.question})
        self.cells: dict[Cell, _View] = {}
        by_key, known = {cell.key: cell for cell in self.study.cells()}, optuna.get_all_study_names(self.storage)
        for key in by_key.keys() & {name.removeprefix(f"{self.study.name}/") for name in known}:
            self._cell(by_key[key])
        for row in sorted(rows, key=lambda row: row.trial):
            cell = by_key.get(row.cell)
            number = None if cell is None else _number(cell, row.trial)
            if cell is not None and number is not None:
                self._finished(cell, number, row)
        self._close()  # trials left running by a killed driver

    def _cell(self, cell: Cell) -> _View:
        if cell not in self.cells:
            about = {"width": cell.width, "num_spectra": cell.num_spectra, "seed": cell.seed}
            space = {"lr": self.sweep.space["lr"]}
            self.cells[cell] = self._view(f"{self.study.name}/{cell.key}", space, {"cell": about})
        return self.cells[cell]

    def _view(self, name: str, space: dict[str, BaseDistribution], about: Params) -> _View:
        return _View(self.storage, name, f"val_{self.study.data.rules.score}", space, about)

    def _params(self, cell: Cell, lr: float) -> Params:
        size = self.sizes[cell.width]
        return {"num_params": size, "num_spectra": cell.num_spectra, "lr": lr, "seed": cell.seed}

    def _space(self) -> dict[str, BaseDistribution]:
        """The ranges of the whole sweep, identical for all trials; otherwise Optuna's importances omit a parameter."""
        search, sizes = self.study.search, self.sizes.values()
        centres, spectra = [search.centre(width) for width in self.study.widths], self.study.data.num_spectra
        return {
            "num_params": IntDistribution(min(sizes), max(sizes), log=True),
            "num_spectra": IntDistribution(min(spectra), max(spectra), log=True),
            "lr": FloatDistribution(min(centres) / RATES, max(centres) * RATES, log=True),
            "seed": IntDistribution(min(self.study.seeds), max(self.study.seeds)),
        }


def sweep_page(path: Path, study: str) -> str:
    """Path of the whole sweep's page in optuna-dashboard; empty if the journal does not contain it (yet)."""
    try:
        storage = JournalStorage(JournalFileBackend(str(path)))
        return f"studies/{storage.get_study_id_from_name(study)}"
    except Exception:  # damaged; the next run rebuilds it
        return ""


@dataclass(slots=True)
class _Entry:
    """The latest entry of a trial in an Optuna study, and Optuna's id of it."""

    id: int
    lr: float
    state: TrialState
    value: float | None = None


class _View:
    """One Optuna study. Trials are identified by our names; Optuna's numbers differ once a trial is repeated."""

    def __init__(
        self, storage: BaseStorage, name: str, metric: str, space: dict[str, BaseDistribution], about: Params
    ) -> None:
        self.storage, self.space = storage, space
        ranges = {key: distribution_to_json(each) for key, each in space.items()}
        study = optuna.create_study(study_name=name, storage=storage, load_if_exists=True, direction="minimize")
        if study.user_attrs.get("ranges", ranges) != ranges:  # the study has grown: update the ranges of all entries
            optuna.delete_study(study_name=name, storage=storage)
            study = optuna.create_study(study_name=name, storage=storage, direction="minimize")
        if not study.user_attrs:
            for key, value in (about | {"ranges": ranges}).items():
                study.set_user_attr(key, value)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                study.set_metric_names([metric])
        self.id = study._study_id
        found = storage.get_all_trials(self.id, deepcopy=False)
        self.entries = {t.user_attrs["trial"]: _Entry(t._trial_id, t.params["lr"], t.state, t.value) for t in found}
        for trial in found:  # older entry of the same trial
            if not trial.state.is_finished() and self.entries[trial.user_attrs["trial"]].id != trial._trial_id:
                storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)

    def run(self, trial: str, params: Params, attrs: Params) -> None:
        entry = self.entries.get(trial)
        if entry is not None and not entry.state.is_finished() and entry.lr != params["lr"]:
            self._set(entry, TrialState.FAIL)  # the search has changed its choice
        if entry is None or entry.state.is_finished():
            entry = self._add(trial, params, attrs, state=TrialState.WAITING, system_attrs={"fixed_params": params})
        self._set(entry, TrialState.RUNNING)

    def finish(self, trial: str, row: Row, params: Params, attrs: Params, results: Params) -> None:
        state, value = _outcome(row)
        entry = self.entries.get(trial)
        if entry is not None and (entry.state, entry.value) == (state, value):
            return
        if entry is None or entry.state.is_finished():
            self._add(trial, params, attrs | results, state=state, value=value)
            return
        for key, result in results.items():
            self.storage.set_trial_user_attr(entry.id, key, result)
        self._set(entry, state, value)

    def wait(self, trial: str) -> None:
        entry = self.entries.get(trial)
        if entry is not None and entry.state == TrialState.RUNNING:
            self._set(entry, TrialState.WAITING)

    def wait_all(self) -> None:
        for trial in self.entries:
            self.wait(trial)

    def _add(self, trial: str, params: Params, attrs: Params, **more: Any) -> _Entry:
        """Add an entry; a waiting one as `optuna.Study.enqueue_trial` does, but with its parameters visible."""
        template = create_trial(
            params=params, distributions=self._distributions(params), user_attrs={"trial": trial} | attrs, **more
        )
        new = self.storage.create_new_trial(self.id, template)
        entry = self.entries[trial] = _Entry(new, params["lr"], template.state, template.value)
        return entry

    def _distributions(self, params: Params) -> dict[str, BaseDistribution]:
        """The ranges, extended for a learning rate outside them, which Optuna would reject."""
        lr, declared = params["lr"], self.space["lr"]
        assert isinstance(declared, FloatDistribution)
        if declared.low <= lr <= declared.high:
            return self.space
        return self.space | {"lr": FloatDistribution(min(lr, declared.low), max(lr, declared.high), log=True)}

    def _set(self, entry: _Entry, state: TrialState, value: float | None = None) -> None:
        self.storage.set_trial_state_values(entry.id, state, None if value is None else [value])
        entry.state, entry.value = state, value


def _outcome(row: Row) -> tuple[TrialState, float | None]:
    if row.status == "done" and not math.isnan(row.val_error):
        return TrialState.COMPLETE, row.val_error
    return (TrialState.PRUNED if str(row.status) == "pruned" else TrialState.FAIL), None


def _about(cell: Cell, number: int) -> Params:
    return {"cell": cell.key, "number": number}


def _number(cell: Cell, trial: str) -> int | None:
    return next((number for number in range(MAX_NUMBER) if cell.trial(number) == trial), None)
