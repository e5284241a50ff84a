"""Progress of long-running work: a bar on a terminal, otherwise lines with the rate and the time left."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

Count = Callable[[int, int], None]
"""Called with (amount done, total)."""
Counting = Callable[[str], contextlib.AbstractContextManager[Count]]
"""Given a description of the items, reports progress as `counting` does."""
QUIET_SECONDS = 2.0
"""Work that ends sooner prints no lines."""


def uncounted(done: int, total: int) -> None:
    """A `Count` that shows nothing."""


@contextlib.contextmanager
def not_counting(what: str) -> Iterator[Count]:
    """A `Counting` that shows nothing."""
    yield uncounted


def duration(seconds: float) -> str:
    """Format seconds for people: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextlib.contextmanager
def counting(what: str, say: Callable[[str], None]) -> Iterator[Count]:
    """Report the progress of a piece of work for the duration of the block.

    Args:
        what: The items that are counted, in the plural.
        say: Called with each line where no terminal shows a bar.
    """
    from rich.console import Console  # imported lazily: most commands report no progress
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console, started = Console(stderr=True), time.monotonic()
    if not console.is_terminal:
        yield lines(what, say)
        return
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[pace]}"))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None, pace="")

        def count(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, pace=_pace(done, total, time.monotonic() - started))

        yield count


def lines(what: str, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> Count:
    """Print at most one line per tenth of the work, whatever the step size."""
    started, said = clock(), 0

    def count(done: int, total: int) -> None:
        nonlocal said
        tenth, seconds = done * 10 // max(total, 1), clock() - started
        if tenth > said and seconds >= QUIET_SECONDS:
            said = tenth
            say(f"{what} {done:,}/{total:,}, {_pace(done, total, seconds)}")

    return count


def _pace(done: int, total: int, seconds: float) -> str:
    rate = done / max(seconds, 1e-9)
    left = f", about {duration((total - done) / rate)} left" if 0 < done < total else ""
    return f"{rate:,.3g} a second{left}" if rate < 10 else f"{rate:,.0f} a second{left}"
