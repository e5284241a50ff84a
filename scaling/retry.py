"""Calls to an object store: again while it is out of reach, up to one limit; and many side by side."""

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
"""The retry limit of a process, in this variable of its environment: no call to an object store is begun again later
than so many seconds after its first attempt. An attempt at a server that is gone takes Arrow's client about six."""
PATIENCE_SECONDS, RUN_PATIENCE_SECONDS = 8.0, 120.0
"""The limit unless the variable says otherwise: of a command that a person waits for, and of a sweep with its workers."""
REFUSED = re.compile(
    "ACCESS_DENIED|NO_SUCH_BUCKET|INVALID_ACCESS_KEY_ID|INVALID_CLIENT_TOKEN_ID|SIGNATURE_DOES_NOT_MATCH"
)
"""Words of Arrow's errors that are an answer, which trying again does not change."""
REQUESTS_AT_ONCE = 16


@contextlib.contextmanager
def patient() -> Iterator[None]:
    """Within, this process and the workers it starts wait for a store that is out of reach, unless the user set a limit."""
    given = os.environ.get(PATIENCE)
    os.environ.setdefault(PATIENCE, str(RUN_PATIENCE_SECONDS))
    try:
        yield
    finally:
        if given is None:
            os.environ.pop(PATIENCE, None)


def retrying(function: Callable[[], Result]) -> Result:
    """Call a function that talks to an object store, again with growing waits where it fails for a passing reason.

    Raises:
        OSError: As the last attempt raised it: a lasting one at once, a passing one at the retry limit.
        UserError: The retry limit in the environment is no number.
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
    """The function of each item, in their order; many at once, as each waits for its answer."""
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        return list(pool.map(function, items))
