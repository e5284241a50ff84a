"""Object-store calls: retried up to a time limit while the store is unreachable, and run concurrently."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from scaling.errors import UserError
from scaling.files import FINAL, is_full

Result = TypeVar("Result")
Item = TypeVar("Item")
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 8.0
PATIENCE = "SCALING_PATIENCE"
"""Environment variable with the process's retry limit in seconds: no call to an object store is retried later than this
after its first attempt. One attempt at an unreachable server takes Arrow's client about six seconds."""
PATIENCE_SECONDS, RUN_PATIENCE_SECONDS = 8.0, 120.0
"""Default limits: for a command that a person waits for, and for a sweep with its workers."""
REFUSED = re.compile(
    "ACCESS_DENIED|NO_SUCH_BUCKET|INVALID_ACCESS_KEY_ID|INVALID_CLIENT_TOKEN_ID|SIGNATURE_DOES_NOT_MATCH"
)
"""Arrow error codes that are final answers; a retry cannot fix them."""
REQUESTS_AT_ONCE = 16


@contextlib.contextmanager
def patient() -> Iterator[None]:
    """Within the block, this process and its new workers use the longer retry limit, unless the user has set one."""
    given = os.environ.get(PATIENCE)
    os.environ.setdefault(PATIENCE, str(RUN_PATIENCE_SECONDS))
    try:
        yield
    finally:
        if given is None:
            os.environ.pop(PATIENCE, None)


def retrying(function: Callable[[], Result]) -> Result:
    """Call a function that talks to an object store; transient failures are retried with exponential backoff.

    Raises:
        OSError: From the last attempt: a permanent error at once, a transient one at the retry limit.
        UserError: The retry limit in the environment is not a number.
    """
    limit, started, wait = os.environ.get(PATIENCE, PATIENCE_SECONDS), time.monotonic(), FIRST_WAIT_SECONDS
    try:
        last = started + float(limit)
    except ValueError:
        raise UserError(
            f"{PATIENCE} = {limit}: must be a number of seconds, such as {RUN_PATIENCE_SECONDS:g}"
        ) from None
    while True:
        try:
            return function()
        except OSError as error:
            if (
                isinstance(error, FINAL)
                or is_full(error)
                or REFUSED.search(str(error))
                or time.monotonic() + wait > last
            ):
                raise
            time.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT_SECONDS)


def side_by_side(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Map a function over items concurrently and return the results in order; each call mostly waits for a server."""
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        return list(pool.map(function, items))
