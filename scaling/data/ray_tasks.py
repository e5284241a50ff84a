"""Functions run as Ray Data tasks, and what a full disk says."""

from __future__ import annotations

import errno
import functools
import logging
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scaling.errors import UserError

Progress = Callable[[int, int], None]
FULL = (errno.ENOSPC, errno.EDQUOT)


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


def map_on_ray(function: Callable[[Any], Any], items: list[Any], count: Progress) -> list[Any]:
    """Apply a function to some items as Ray Data tasks; results in the items' order, whatever order they end in.

    Raises:
        UserError: What the function raised.
        OSError: The function found the disk full.
    """
    import ray.data  # slow to import, and needed here only

    results: dict[int, Any] = {}
    if not items:
        return []
    with _quiet_ray_data():
        run = functools.partial(_run_task, function=function, items=items)
        rows = ray.data.from_items([{"index": at} for at in range(len(items))], override_num_blocks=len(items))
        for row in rows.map(run).iter_rows():
            if row["full"]:
                raise OSError(row["full"], os.strerror(row["full"]))
            if row["mistake"]:
                raise UserError(row["mistake"])
            results[row["index"]] = pickle.loads(row["result"])
            count(len(results), len(items))
    return [results[at] for at in range(len(items))]


def _run_task(row: dict[str, Any], function: Callable[[Any], Any], items: list[Any]) -> dict[str, Any]:
    """One Ray Data task.

    A user's mistake or a full disk is returned, not raised: Ray would wrap it in a traceback. The result travels as bytes, because its
    arrays differ in length and Ray Data wants one schema.
    """
    outcome = {"index": row["index"], "result": b"", "mistake": "", "full": 0}
    try:
        outcome["result"] = pickle.dumps(function(items[row["index"]]))
    except UserError as error:
        outcome["mistake"] = str(error)
    except OSError as error:
        if error.errno not in FULL:
            raise
        outcome["full"] = error.errno
    return outcome


@contextmanager
def _quiet_ray_data() -> Iterator[None]:
    """No progress bars and no log lines but errors from Ray Data, whose settings are restored afterwards."""
    from ray.data import DataContext

    context = DataContext.get_current()
    logger = logging.getLogger("ray.data")
    before = context.enable_progress_bars, logger.level
    context.enable_progress_bars = False
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars = before[0]
        logger.setLevel(before[1])
