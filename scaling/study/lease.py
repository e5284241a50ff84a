"""Lease on a study in a store without locks: an object that the running `scaling run` renews."""

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
"""A lease that was not renewed for this long has expired; it is renewed six times in this period."""
JOIN_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Holder:
    """The holder of a lease. Process ids are comparable only on one `machine`: a host or container since its start."""

    token: str = ""
    host: str = "a host that it does not name"
    machine: str = ""
    pid: int = 0

    @classmethod
    def parse(cls, content: bytes) -> Holder:
        """Parse the holder in a lease; an unknown holder if it is damaged."""
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
        except OSError:  # not Linux
            machine = ""
        return cls(uuid.uuid4().hex, socket.gethostname(), machine, os.getpid())

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    def is_dead(self, observer: Holder) -> bool:
        """Whether the holder's process is known to have ended; only an observer on the same machine can tell."""
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


@contextlib.contextmanager
def lease(folder: Folder, path: str, say: Callable[[str], None], *, seconds: float = LEASE_SECONDS) -> Iterator[None]:
    """Hold the lease on a study for one run, and release it at the end.

    If the lease is lost to another holder, the main thread is interrupted, as by Ctrl-C.

    Args:
        folder: The store.
        path: Path of the lease in the store.
        say: Called with a line when waiting for another holder's lease.
        seconds: Time without renewal after which a lease expires.

    Raises:
        UserError: Another process is working on the study, or has taken over the lease.
    """
    held = _Lease(folder, path, seconds)
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

    Arrow has no conditional put, so a lease is acquired by writing it and reading it back after a delay: of two simultaneous
    writers, the later one wins. If a write is delayed by more than that, both run until the next renewal, when the one that
    finds the other's lease stops; a trial gives the same row whoever runs it. Clocks of different hosts are never compared:
    a waiting process observes whether the content changes.
    """

    def __init__(self, folder: Folder, path: str, seconds: float) -> None:
        self.folder, self.path, self.seconds = folder, path, seconds
        self.me, self.ended, self.lost = Holder.this_process(), threading.Event(), ""

    def take(self, say: Callable[[str], None]) -> None:
        """Acquire the lease if it is free or has expired.

        Raises:
            UserError: Its holder is active.
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
        """Renew the lease until the end, or until another holder has it."""
        while not self.ended.wait(self.seconds / 6):
            with contextlib.suppress(OSError, UserError):  # unreachable or full: retried, as others cannot write either
                found = self.folder.read(self.path)
                if found is not None and Holder.parse(found) != self.me:
                    self.lost = (
                        f"{self.place}: another `scaling run` ({Holder.parse(found)}) took this study over, as this one had "
                        f"not renewed its lease for {self.seconds:g} s; see `scaling status`"
                    )
                    if not self.ended.is_set():
                        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                    return
                self._write()

    def give_back(self) -> None:
        """Remove the lease, unless another holder has it.

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
