"""What a person reads while a sweep runs: our lines only. What Ray says goes to a file, and a stop signal ends with one line."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import FrameType


@contextlib.contextmanager
def logged_apart(path: Path) -> Iterator[None]:
    """Send Ray's messages, tracebacks of lost trials among them, to a file instead of the terminal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(path, delay=True)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    names = ["ray", *(name for name in logging.root.manager.loggerDict if name.startswith("ray."))]
    loggers = [logging.getLogger(name) for name in (*names, "py.warnings")]
    before = [(logger, logger.handlers, logger.propagate, logger.level) for logger in loggers]
    for logger in loggers:
        top = logger.name in ("ray", "py.warnings")
        logger.handlers, logger.propagate = [file] if top else [], not top
        logger.setLevel(logging.INFO if top else logging.NOTSET)
    logging.captureWarnings(True)
    try:
        with warnings.catch_warnings():
            yield
    finally:
        logging.captureWarnings(False)
        for logger, handlers, propagate, level in before:
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)
        file.close()


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
