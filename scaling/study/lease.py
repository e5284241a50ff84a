"""Which `scaling run` is at work on a study, where the store has no locks: an object that its holder renews."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from scaling.errors import UserError
from scaling.folder import Folder

LEASE_SECONDS = 60.0
"""A lease that was not renewed for so long is nobody's; it is renewed six times within that."""
JOIN_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lease. Process numbers mean the same only on one `machine`: a container of a host since it was started."""

    token: str = ""
    host: str = "a host that it does not name"
    machine: str = ""
    pid: int = 0

    @classmethod
    def parse(cls, content: bytes) -> Holder:
        """The holder as a lease names it; nobody known where it is damaged."""
        try:
            said = json.loads(content)
            return cls(str(said["token"]), str(said["host"]), str(said["machine"]), int(said["pid"]))
        except (ValueError, KeyError, TypeError):
            return cls()

    @classmethod
    def this_process(cls) -> Holder:
        """A new holder in this process."""
        try:
            machine = Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
        except OSError:  # no Linux
            machine = ""
        return cls(uuid.uuid4().hex, socket.gethostname(), machine, os.getpid())

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    def is_dead(self, observer: Holder) -> bool:
        """Whether the process is known to have ended, by one on the same machine."""
        if not self.machine or self.machine != observer.machine or self.pid <= 0:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except (PermissionError, OverflowError):
            pass
        return False


def runs_here(folder: Folder, path: str) -> bool:
    """Whether a lease is held by a living process of this machine."""
    found, here = folder.read(path), Holder.this_process()
    holder = Holder.parse(found or b"")
    return bool(holder.machine) and holder.machine == here.machine and not holder.is_dead(here)


def interrupt() -> None:
    """Interrupt the main thread, as Ctrl-C does."""
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


@contextlib.contextmanager
def lease(
    folder: Folder,
    path: str,
    say: Callable[[str], None],
    *,
    seconds: float = LEASE_SECONDS,
    stop: Callable[[], None] = interrupt,
) -> Iterator[None]:
    """Hold a study for one run, and give it back at the end.

    Args:
        folder: The store.
        path: The lease's place in it.
        say: Called with a line when another's lease is waited for.
        seconds: After how long without renewal a lease is nobody's.
        stop: Called from another thread when the lease turns out to be another's; the block is to end then.

    Raises:
        UserError: Another process is at work on the study, or took it over meanwhile.
    """
    held = _Lease(folder, path, seconds, stop)
    held.take(say)
    renewing = threading.Thread(target=held.keep, daemon=True, name="lease")
    renewing.start()
    try:
        yield
    finally:
        try:
            held.ended.set()
            renewing.join(JOIN_SECONDS)
        finally:
            held.give_back()


class _Lease:
    """One holder's view of the lease.

    Arrow has no conditional put, so it is taken by writing one's own and reading it back after a while: of two that write
    at once the later one has it. Should a write have been delayed by more than that, both run until the next renewal,
    where the one that finds the other's lease stops; a trial gives the same row whoever runs it. Clocks of hosts are not
    compared: whoever waits watches whether the content changes.
    """

    def __init__(self, folder: Folder, path: str, seconds: float, stop: Callable[[], None]) -> None:
        self.folder, self.path, self.seconds, self.stop = folder, path, seconds, stop
        self.me, self.ended, self.lost = Holder.this_process(), threading.Event(), ""

    def take(self, say: Callable[[str], None]) -> None:
        """Take the lease if it is nobody's, or has not been renewed for long enough.

        Raises:
            UserError: Its holder is at work.
        """
        found = self.folder.read(self.path)
        if found is not None and not Holder.parse(found).is_dead(self.me):
            say(
                f"{self.place}: held by {Holder.parse(found)}; waiting up to {self.seconds:g} s, "
                "in case that `scaling run` was killed: it is taken over if it is not renewed"
            )
            started = time.monotonic()
            while found is not None and time.monotonic() - started < self.seconds:
                time.sleep(self.seconds / 30)
                known, found = found, self.folder.read(self.path)
                if found not in (known, None):
                    raise self._taken(found)
        self._write()
        time.sleep(self.seconds / 30)
        found = self.folder.read(self.path)
        if found is not None and Holder.parse(found) != self.me:
            raise self._taken(found)

    def keep(self) -> None:
        """Renew the lease until the end, or until it is another's."""
        while not self.ended.wait(self.seconds / 6):
            with contextlib.suppress(OSError, UserError):  # out of reach or full: tried again, as others must try
                found = self.folder.read(self.path)
                if found is not None and Holder.parse(found) != self.me:
                    self.lost = (
                        f"{self.place}: another `scaling run` ({Holder.parse(found)}) took this study over, as this one had "
                        f"not renewed its lease for {self.seconds:g} s; see `scaling status`"
                    )
                    if not self.ended.is_set():
                        self.stop()
                    return
                self._write()

    def give_back(self) -> None:
        """Remove the lease; another's stays.

        Raises:
            UserError: It was lost.
        """
        if self.lost:
            raise UserError(self.lost)
        with contextlib.suppress(OSError):
            found = self.folder.read(self.path)
            if found is not None and Holder.parse(found) == self.me:
                self.folder.delete(self.path)

    @property
    def place(self) -> str:
        """The lease's URI, for messages."""
        return self.folder.locate(self.path)

    def _write(self) -> None:
        self.folder.write(self.path, json.dumps(asdict(self.me) | {"renewed": time.time()}).encode())

    def _taken(self, content: bytes) -> UserError:
        return UserError(
            f"{self.place}: another `scaling run` ({Holder.parse(content)}) is at work on this study; see `scaling status`"
        )
