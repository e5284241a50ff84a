"""Work on Ray Data: the conversion's pipeline, functions over lists, and what their errors say."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from scaling.errors import UserError
from scaling.files import FINAL, Location, is_full


@contextlib.contextmanager
def task_errors(dest: Location, full: Callable[[], UserError] | None = None) -> Iterator[None]:
    """Turns what went wrong in a task, which Ray wraps in tracebacks, into one line.

    Args:
        dest: What the tasks write to, for the message.
        full: The error for a full disk.

    Raises:
        UserError: The user's mistake, or an error of the file system.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        cause = _cause(error)
        if isinstance(cause, UserError):
            raise UserError(str(cause)) from None
        if not isinstance(cause, OSError):
            raise
        if is_full(cause) and full is not None:
            raise full() from None
        reason = cause.strerror or str(cause).splitlines()[0]
        where = cause.filename or dest
        remedy = "correct its permissions or name another folder" if isinstance(cause, FINAL) else "run it again"
        raise UserError(f"{where}: {reason}: {remedy}") from None


def _cause(error: BaseException) -> BaseException:
    """What a task raised."""
    seen: BaseException | None = error
    while seen is not None:
        for found in (seen, getattr(seen, "cause", None)):
            if isinstance(found, UserError | OSError) and not _is_wrapper(found):
                return found
        seen = seen.__cause__ or getattr(seen, "cause", None)
    return error


def _is_wrapper(error: BaseException) -> bool:
    """Whether Ray made the class: one that is both its own and the cause's, with a traceback for a message."""
    import ray

    return isinstance(error, ray.exceptions.RayTaskError)
