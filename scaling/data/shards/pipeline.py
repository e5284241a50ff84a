"""Work on Ray Data: the conversion's pipeline, functions over lists, and what their errors say."""

from __future__ import annotations

import contextlib
import logging
import pickle
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa

from scaling.errors import UserError
from scaling.files import FINAL, Location, is_full

if TYPE_CHECKING:
    from scaling.data.shards.datasink import ShardDatasink
    from scaling.data.shards.datasource import SpectraDatasource

Item = TypeVar("Item")
Result = TypeVar("Result")
NO_PROGRESS = ("execution failed", "does not have any available CPUs")
"""The second: of few CPUs Ray Data (2.60) says that it will hang when a write has just ended and they are not counted as free yet."""
OPERATOR_PROGRESS = re.compile(r"(?!Total ).+: [\d,]+/[\d,?]+")
BLOCK_BYTES = 2**24
"""A row group of 4096 pixels: blocks go through the pipeline as they are read, and are not joined."""


@contextlib.contextmanager
def task_errors(dest: Location) -> Iterator[None]:
    """Turns what went wrong in a task, which Ray wraps in tracebacks, into one line.

    Args:
        dest: What the tasks write to, for the message.

    Raises:
        UserError: The user's mistake, or an error of the file system.
    """
    try:
        yield
    except Exception as error:
        cause = _cause(error)
        if isinstance(cause, UserError):
            if cause is error:
                raise
            raise type(cause)(_first_line(cause)) from None
        if not isinstance(cause, OSError):
            raise
        reason = cause.strerror or _first_line(cause)
        # On its way here Ray Data's lines may have taken the place of the name.
        where = cause.filename if cause.filename and "\n" not in str(cause.filename) else dest
        remedy = "correct its permissions or name another place" if isinstance(cause, FINAL) else "run it again"
        remedy = "make room and run the same command again" if is_full(cause) else remedy
        raise UserError(f"{where}: {reason}: {remedy}") from None


def _first_line(error: BaseException) -> str:
    """What was raised: Ray Data appends lines about its settings."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _cause(error: BaseException) -> BaseException:
    """What a task raised: Ray's own class is also the cause's, with a traceback for a message."""
    import ray

    while isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause
    return error


@contextlib.contextmanager
def ray_data() -> Iterator[None]:
    """Ray Data's settings for what this package runs on it.

    An error of a task is raised, and Ray Data has it in its own log file: it is not also printed.
    """
    from ray.data.context import DataContext

    settings = DataContext.get_current().copy()
    settings.target_max_block_size = BLOCK_BYTES
    settings.print_on_execution_start = False
    # Blocks stay in the tasks: no budget of the object store is to hold tasks back, as it does for a second at the start.
    settings.op_resource_reservation_enabled = False
    settings.raise_original_map_exception = True  # a wrapper of it loses what it wraps on the way here
    consoles = [
        handler for handler in logging.getLogger("ray.data").handlers if isinstance(handler, logging.StreamHandler)
    ]
    for handler in consoles:
        handler.addFilter(_is_progress)
    try:
        with DataContext.current(settings):
            yield
    finally:
        for handler in consoles:
            handler.removeFilter(_is_progress)


def _is_progress(record: logging.LogRecord) -> bool:
    """Whether a line says when a pipeline ends or, where no terminal shows bars, how far each of its operators is."""
    message = record.getMessage()
    if record.levelno >= logging.ERROR or any(words in message for words in NO_PROGRESS):
        return False
    return record.module != "logging_progress" or OPERATOR_PROGRESS.fullmatch(message) is not None


def write_shards(
    datasource: SpectraDatasource, prepare: Callable[[pa.Table], pa.Table], sink: ShardDatasink, num_tasks: int
) -> str:
    """Read, prepare and write in one fused Ray Data pipeline; returns Ray Data's statistics of it."""
    import ray

    with ray_data():
        dataset = ray.data.read_datasource(datasource, override_num_blocks=num_tasks)
        prepared = dataset.map_batches(prepare, batch_size=None, batch_format="pyarrow", zero_copy_batch=True)
        prepared.write_datasink(sink)
        return str(prepared._write_ds.stats())


def write_shards_here(
    datasource: SpectraDatasource, prepare: Callable[[pa.Table], pa.Table], sink: ShardDatasink, num_tasks: int
) -> str:
    """The same work one task after the other in this process, for a set that is not worth a pipeline."""
    from ray.data.datasource import WriteResult

    try:
        found = [sink.write(map(prepare, task()), None) for task in datasource.get_read_tasks(num_tasks)]
    except Exception as error:
        sink.on_write_failed(error)
        raise
    sink.on_write_complete(WriteResult(0, 0, found))
    return ""


def map_on_ray(function: Callable[[Item], Result], items: list[Item]) -> list[Result]:
    """Apply a function to items by Ray Data, one item a task; the results in the items' order."""
    import ray

    if not items:
        return []
    with ray_data():
        rows = [{"at": at, "item": pickle.dumps(item)} for at, item in enumerate(items)]
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
        done = dataset.map(
            lambda row: {"at": row["at"], "result": pickle.dumps(function(pickle.loads(row["item"])))}
        ).take_all()
    return [pickle.loads(row["result"]) for row in sorted(done, key=lambda row: row["at"])]
