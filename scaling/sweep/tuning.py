"""The sweep as one Ray Tune run: its searcher, its scheduler, and the trainable."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

from ray import tune
from ray.autoscaler.sdk import request_resources
from ray.tune.execution import class_cache
from ray.tune.logger import JsonLoggerCallback
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import FIFOScheduler

from scaling.data.batches.cache import cache_limit
from scaling.data.shards.manifest import Manifest
from scaling.errors import NodeError, UserError
from scaling.files import FullError
from scaling.sweep.baselines import Baselines, BaselineTask
from scaling.sweep.code import code_hash
from scaling.sweep.gauges import Gauges
from scaling.sweep.journal import Journal
from scaling.sweep.nodes import Nodes, check_placements, choose_access, maps_bytes
from scaling.sweep.progress import Progress
from scaling.sweep.rates import Rates
from scaling.sweep.search import Result, SweepSearch
from scaling.sweep.sweep import Sweep
from scaling.sweep.trial import Trial, describe_exception

DRIVER_MEMORY = float(2**30)
"""Memory reserved for the process that waits for Ray Train's workers, in bytes."""


def run_sweep(
    sweep: Sweep,
    rates: Rates,
    tasks: list[BaselineTask],
    say: Callable[[str], None],
    callbacks: list[Any],
    *,
    may_grow: bool,
) -> None:
    """Run trials until none is due, on the connected Ray cluster.

    Args:
        sweep: The study, its data and its store.
        rates: The existing rows with the due trials.
        tasks: The remaining baselines.
        say: Called with each line of progress.
        callbacks: Tune callbacks that log trials elsewhere.
        may_grow: Whether nodes may join the cluster; trials that do not fit yet then wait, and an autoscaler is asked for room.

    Raises:
        UserError: A cell can never run on this cluster, no node is usable, all trials fail alike, or the store is full.
    """
    study, folder = sweep.study, sweep.folder
    gpus_needed = any(place.gpus for place in study.placements)
    nodes = Nodes(sweep.shards, sweep.cache_root, say, gpus_needed=gpus_needed, code=code_hash())
    offers = nodes.wait_for_first()
    if not may_grow:
        check_placements(study, offers)
    manifest = Manifest.load(sweep.shards)
    access = choose_access(study, manifest, offers, cache_limit())
    nodes.room_needed = maps_bytes(study, manifest, access)
    sweep = dataclasses.replace(sweep, access=access)
    if streamed := [n for n, way in access.items() if way == "streamed"]:
        say(f"{', '.join(f'{n:,}' for n in streamed)} spectra are streamed from the shards; no node keeps a copy")
    ask_for = _Request() if may_grow else lambda bundles: None
    rows = [row for rows in rates.rows.values() for row in rows.values()]
    with (
        contextlib.closing(Journal(study, folder.journal, rows)) as journal,
        Progress(
            study, rows, say, devices=nodes.devices, remaining=rates.remaining, gauges=Gauges(study.name)
        ) as progress,
    ):
        baselines = Baselines(tasks, progress.say)
        search = SweepSearch(study, sweep.trial, rates, nodes, journal, progress, ask_for, baselines)
        _forward_no_keys()
        try:
            _tuner(search, str(folder.views), callbacks).fit()
        finally:
            ask_for([])
    if search.stopped:
        raise UserError(search.stopped)
    folder.clear_ray_train_storage()


def _forward_no_keys() -> None:
    """Keep Tune from passing AWS keys to trials in their runtime environment, which Ray logs; nodes have their own."""
    class_cache.ENV_VARS_TO_PROPAGATE -= {name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")}


def _tuner(search: SweepSearch, storage: str, callbacks: list[Any]) -> tune.Tuner:
    return tune.Tuner(
        tune.with_resources(_trainable, _resources),
        tune_config=tune.TuneConfig(
            search_alg=search,
            scheduler=Referee(search),
            num_samples=-1,
            reuse_actors=True,
            trial_name_creator=lambda trial: trial.config["trial"].key,
            trial_dirname_creator=lambda trial: f"{trial.config['trial'].key}-{trial.trial_id}",
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=storage,
            verbose=0,
            callbacks=[Starts(search), JsonLoggerCallback(), *callbacks],
        ),
    )


class _Request:
    """Requests room from an autoscaler, if there is one, which keeps the last request until it is replaced."""

    def __init__(self) -> None:
        self.last: list[dict[str, float]] = []

    def __call__(self, bundles: list[dict[str, float]]) -> None:
        if bundles != self.last:
            request_resources(bundles=bundles)
            self.last = bundles


def _trainable(config: dict[str, Any]) -> dict[str, Any]:
    """The Tune trainable. It never raises: the searcher decides how to handle errors."""
    trial: Trial | BaselineTask = config["trial"]
    try:
        if isinstance(trial, BaselineTask):
            return {"rows": [row.to_json() for row in trial.run()], "trial": trial.key}
        row = trial.run(tune.report)
    except FullError as error:
        return {"full": str(error)}
    except NodeError as error:
        return {"node": str(error), "node_id": error.node or trial.nodes[0]}
    except UserError as error:
        return {"mistake": str(error)}
    except Exception as error:
        return {"failure": describe_exception(error)}
    names = ("trial", "status", row.measure.val, row.measure.test, "device_seconds", "mfu")
    return {"row": row.to_json(), **{name: getattr(row, name) for name in names}}


def _resources(config: dict[str, Any]) -> Any:
    """The resources of a trial, on its assigned node."""
    trial: Trial | BaselineTask = config["trial"]
    placement = trial.placement
    # Ray Train requests the workers' devices itself. The driver only waits, and must not hold a CPU that they may need.
    own = {"CPU": placement.cpus, "GPU": placement.gpus} if placement.host == "process" else {"memory": DRIVER_MEMORY}
    return tune.PlacementGroupFactory([own], bundle_label_selector=[{"ray.io/node-id": trial.nodes[0]}])


class Referee(FIFOScheduler):
    """Tune's scheduler, first in, first out; it also stops trials that the searcher gives up on their current nodes."""

    def __init__(self, search: SweepSearch) -> None:
        super().__init__()
        self.search = search

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """Stop overdue trials, then choose as Tune does."""
        if overdue := set(self.search.overdue()):
            for trial in [trial for trial in tune_controller.get_live_trials() if trial.trial_id in overdue]:
                tune_controller.stop_trial(trial)
        return super().choose_trial_to_run(tune_controller)

    def __getstate__(self) -> Result:
        """Exclude the scheduler's state from Tune's own snapshot, which is never read."""
        return {}


class Starts(TrialProgressCallback):
    """Reports to the searcher which trials have a process; replaces the callback with which Tune prints results."""

    def __init__(self, search: SweepSearch) -> None:
        super().__init__()
        self.search = search

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called by Tune."""
        self.search.on_trial_start(trial.trial_id)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Keep Tune from unpickling the errors of lost trials, which it would read back from the store."""
        for trial in trials:
            trial.run_metadata.pickled_error_filename = None

    def on_trial_result(self, *args: Any, **info: Any) -> None:
        """No-op: the searcher receives results itself."""

    on_trial_error = on_trial_complete = on_trial_result
