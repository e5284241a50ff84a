"""What a person reads while a sweep runs: our lines only. What Ray says goes to a file, and a stop signal ends with one line."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TextIO


class _WithoutRay:
    """A standard stream without what Ray's listening threads print into it: that goes to a file."""

    def __init__(self, stream: TextIO, file: TextIO) -> None:
        self.stream, self.file = stream, file

    def write(self, text: str) -> int:
        """Write where the thread's words belong."""
        ray = threading.current_thread().name.startswith("ray_")
        return (self.file if ray else self.stream).write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def logged_apart(path: Path) -> Iterator[None]:
    """Send Ray's messages, tracebacks of lost trials and words about lost nodes among them, to a file instead of the terminal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", buffering=1) as file:
        handler = logging.StreamHandler(file)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        names = ["ray", *(name for name in logging.root.manager.loggerDict if name.startswith("ray.")), "py.warnings"]
        loggers = [logging.getLogger(name) for name in names]
        before = [(logger, logger.handlers, logger.propagate, logger.level) for logger in loggers]
        for logger in loggers:
            top = logger.name in ("ray", "py.warnings")
            logger.handlers, logger.propagate = [handler] if top else [], not top
            logger.setLevel(logging.INFO if top else logging.NOTSET)
        logging.captureWarnings(True)
        streams: Any = (_WithoutRay(sys.stdout, file), _WithoutRay(sys.stderr, file))
        try:
            with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
                yield
        finally:
            logging.captureWarnings(False)
            for logger, handlers, propagate, level in before:
                logger.handlers, logger.propagate = handlers, propagate
                logger.setLevel(level)


@contextlib.contextmanager
def stop_signals() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C, once. Ray replaces the handler when it connects, with one that prints a stack: call it after that too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # once is enough: what is open is closed now
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
