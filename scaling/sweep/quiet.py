"""Terminal output of a sweep: only our own lines. Ray's messages go to a file, and a stop signal prints one line."""

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
    """A standard stream that redirects the output of Ray's listener threads to a file."""

    def __init__(self, stream: TextIO, file: TextIO) -> None:
        self.stream, self.file = stream, file

    def write(self, text: str) -> int:
        """Write to the stream or the file, depending on the thread."""
        ray = threading.current_thread().name.startswith("ray_")
        return (self.file if ray else self.stream).write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def logged_apart(path: Path) -> Iterator[None]:
    """Redirect Ray's messages, including tracebacks of lost trials and reports of lost nodes, to a file."""
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
    """Treat the first SIGTERM like Ctrl-C; call again after Ray connects, which installs a stack-printing handler."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # ignored from now on, during cleanup
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
