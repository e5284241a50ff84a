"""Functions run as Ray tasks, and what a full disk says.

Plain tasks, not a Ray dataset of row ranges: here Ray Data left each worker idle for a fifth of the time between its tasks,
which are long and few, and took 1.5 times as long.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from scaling.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
Progress = Callable[[int, int], None]
FULL = (errno.ENOSPC, errno.EDQUOT)
RETRIES = 10
"""Workers that may die of one task: a poisonous one should not be tried for ever."""
CANCEL_SECONDS = 30


def disk_is_full(dest: Path, needed: int) -> UserError:
    """The mistake to raise where ``dest`` has no room for ``needed`` more bytes."""
    free = shutil.disk_usage(dest).free
    return UserError(
        f"{dest}: the disk is full: at least {needed / 1e9:.3f} GB are needed and {free / 1e9:.3f} GB are free: "
        "make room and run the same command again"
    )


@contextmanager
def full_disk_as_mistake(dest: Path, needed: Callable[[], int]) -> Iterator[None]:
    """A full disk inside the block is the user's mistake, with what ``needed`` then reckons.

    Raises:
        UserError: The disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise disk_is_full(dest, needed()) from error


def map_on_ray(function: Callable[[Item], Result], items: list[Item], count: Progress) -> Iterator[Result]:
    """Apply a function to some items, each as a Ray task with a CPU of its own.

    A task whose worker dies is run again. If the caller stops early, or one task fails, those not begun are given up.

    Yields:
        Results in the items' order, whatever order they end in.

    Raises:
        UserError: What the function raised.
        OSError: The function found the disk full.
    """
    if not items:
        return
    import ray  # slow to import, and needed here only

    run: Any = ray.remote(_run_task).options(num_cpus=1, max_retries=RETRIES, scheduling_strategy="SPREAD")
    shared = ray.put(function)
    pending = {run.remote(shared, item): at for at, item in enumerate(items)}
    early: dict[int, Result] = {}
    next_at = 0
    try:
        while pending:
            (ready, *_), _ = ray.wait(list(pending), num_returns=1)
            at = pending.pop(ready)
            early[at] = _result(ray.get(ready))
            del ready  # or the object store would hold it as long as the caller is at work
            count(len(items) - len(pending), len(items))
            while next_at in early:
                yield early.pop(next_at)
                next_at += 1
    finally:
        for task in pending:
            ray.cancel(task)
        if pending:  # nothing is to be at work on the caller's files when it hears of a mistake
            ray.wait(list(pending), num_returns=len(pending), timeout=CANCEL_SECONDS)


@dataclass(frozen=True, slots=True)
class _Outcome(Generic[Result]):
    """What a task returns: a result, or the user's mistake, or the number of a full disk's error.

    Mistakes are returned, not raised: Ray would wrap them in tracebacks.
    """

    result: Result | None = None
    mistake: str = ""
    full: int = 0


def _run_task(function: Callable[[Item], Result], item: Item) -> _Outcome[Result]:
    """One task."""
    try:
        return _Outcome(function(item))
    except UserError as error:
        return _Outcome(mistake=str(error))
    except OSError as error:
        if error.errno not in FULL:
            raise
        return _Outcome(full=error.errno)


def _result(outcome: _Outcome[Result]) -> Result:
    if outcome.full:
        raise OSError(outcome.full, os.strerror(outcome.full))
    if outcome.mistake:
        raise UserError(outcome.mistake)
    return cast(Result, outcome.result)
