"""Work on Ray: the conversion's pipeline on Ray Data, parallel maps over lists, and error messages."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa

from scaling.errors import UserError
from scaling.files import FINAL, Location, is_full

if TYPE_CHECKING:
    from scaling.data.shards.datasink import ShardDatasink
    from scaling.data.shards.datasource import SpectraDatasource

Item = TypeVar("Item")
Result = TypeVar("Result")
NO_PROGRESS = ("execution failed", "does not have any available CPUs")
"""Messages to suppress; the second is a false warning of a hang by Ray Data (2.60).

With few CPUs, it appears while those of a finished write still count as used."""
OPERATOR_PROGRESS = re.compile(r"(?!Total ).+: [\d,]+/[\d,?]+")
BLOCK_BYTES = 2**24
"""Size of a row group of 4096 pixels: blocks pass through the pipeline as they are read, without being merged."""


@contextlib.contextmanager
def task_errors(dest: Location) -> Iterator[None]:
    """Convert a task's error, which Ray wraps in tracebacks, into one line.

    Args:
        dest: The output location of the tasks, for the message.

    Raises:
        UserError: A user error, or an error of the file system.
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
        # Ray Data may have replaced the file name by its own lines on the way.
        where = cause.filename if cause.filename and "\n" not in str(cause.filename) else dest
        remedy = "correct its permissions or name another place" if isinstance(cause, FINAL) else "run it again"
        remedy = "make room and run the same command again" if is_full(cause) else remedy
        raise UserError(f"{where}: {reason}: {remedy}") from None


def _first_line(error: BaseException) -> str:
    """The first line of an error; Ray Data appends lines about its settings."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _cause(error: BaseException) -> BaseException:
    """The exception raised in a task; Ray's wrapper also subclasses its type, with a traceback as the message."""
    import ray

    while isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause
    return error


@contextlib.contextmanager
def ray_data() -> Iterator[None]:
    """Apply Ray Data's settings for this package within the block.

    Task errors are raised and written to Ray Data's own log file, so they are not printed as well.
    """
    from ray.data.context import DataContext

    settings = DataContext.get_current().copy()
    settings.target_max_block_size = BLOCK_BYTES
    settings.print_on_execution_start = False
    # Blocks stay inside the tasks, so no object-store budget should delay tasks, as it does for a second at the start.
    settings.op_resource_reservation_enabled = False
    settings.raise_original_map_exception = True  # a wrapper would lose its cause on the way here
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
    """Log filter that keeps the end of a pipeline and, without a terminal, each operator's progress; errors are raised as well."""
    message = record.getMessage()
    if record.levelno >= logging.ERROR or any(words in message for words in NO_PROGRESS):
        return False
    return record.module != "logging_progress" or OPERATOR_PROGRESS.fullmatch(message) is not None


def write_shards(
    datasource: SpectraDatasource, prepare: Callable[[pa.Table], pa.Table], sink: ShardDatasink, num_tasks: int
) -> str:
    """Read, prepare and write in one fused Ray Data pipeline; returns Ray Data's statistics."""
    import ray

    with ray_data():
        dataset = ray.data.read_datasource(datasource, override_num_blocks=num_tasks)
        prepared = dataset.map_batches(prepare, batch_size=None, batch_format="pyarrow", zero_copy_batch=True)
        prepared.write_datasink(sink)
        return str(prepared._write_ds.stats())


def write_shards_here(
    datasource: SpectraDatasource, prepare: Callable[[pa.Table], pa.Table], sink: ShardDatasink, num_tasks: int
) -> str:
    """As `write_shards`, but one task after the other in this process, for a set too small for a pipeline."""
    from ray.data.datasource import WriteResult

    try:
        found = [sink.write(map(prepare, task()), None) for task in datasource.get_read_tasks(num_tasks)]
    except Exception as error:
        sink.on_write_failed(error)
        raise
    sink.on_write_complete(WriteResult(0, 0, found))
    return ""


def map_on_ray(function: Callable[[Item], Result], items: list[Item]) -> list[Result]:
    """Map a function over items on Ray, one task per item; results are in the items' order."""
    import ray

    task: Any = ray.remote(lambda item: function(item))  # Ray takes no partial
    return ray.get([task.remote(item) for item in items])
