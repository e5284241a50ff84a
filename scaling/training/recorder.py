"""A trial's curve and the state it resumes from, kept in its folder."""

from __future__ import annotations

import csv
import io
import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch
import xxhash

from scaling.errors import UserError
from scaling.parse import parse_object
from scaling.training.events import CurveFile, HParams
from scaling.training.state import State

Metrics = dict[str, float]
LOG = logging.getLogger(__name__)


class Folder(Protocol):
    """Where a trial keeps its curve and the state it resumes from. A reader never sees half of a file."""

    @property
    def state_place(self) -> str:
        """Path or URI of the state, for messages."""

    def write_progress(self, csv: str, events: bytes) -> None:
        """Replace the curve."""

    def write_state(self, content: bytes) -> None:
        """Replace the state; the previous one stays if this fails."""

    def read_state(self) -> bytes | None:
        """The last state, if any."""

    def set_state_aside(self) -> None:
        """Rename a damaged state, so that it is in nobody's way."""


class Recorder:
    """Keeps a trial's curve and state in its folder. The curve is part of the state: no point is lost or doubled.

    A state is resumed from by the trial that left it: same `identity` (all that is declared) and same `setting` (what the
    search chose). One of another setting is replaced: the search asks for something else by now. Rank 0 `keeps` them.
    The trial is `shown` by these settings on TensorBoard's HPARAMS page.

    What is reported is written by a thread while the training continues, one evaluation at a time: `flush` it before what
    says that it is there. A process that is killed loses the evaluation being written, at most.
    """

    def __init__(
        self,
        folder: Folder,
        identity: str,
        setting: str,
        forward: Callable[[Metrics], None],
        *,
        keeps: bool,
        shown: HParams | None = None,
    ) -> None:
        self.folder, self.forward, self.keeps = folder, forward, keeps
        self.identity, self.setting = identity, setting
        self._curve_file = CurveFile(shown or {})
        self.curve: list[Metrics] = []
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="recorder")
        self._written: Future[None] | None = None

    def load(self) -> State | None:
        """The state to resume from, the same on all workers; None to begin.

        A file that is not what was written is set aside, and the trial restarts from step 0: the same result, later.

        Raises:
            UserError: the state is of another declaration or other data. One worker raises it while others wait.
        """
        found = [self._read() if self.keeps else None]
        if torch.distributed.is_initialized():  # one reads for all: a shared file system may show others an older file
            torch.distributed.broadcast_object_list(found)
        if found[0] is None:
            return None
        try:
            self.curve, state = _unpacked(found[0])
            return state
        except Exception:  # PyTorch raises anything for a content that is no state
            self.refuse()
            return None

    def refuse(self) -> None:
        """Set aside a state that cannot be resumed from, so that the trial restarts. Called on all workers."""
        self.curve = []
        if self.keeps:
            LOG.warning("%s: damaged; it is set aside and the trial restarts from step 0", self.folder.state_place)
            self.folder.set_state_aside()

    def _read(self) -> bytes | None:
        """The saved state without its first line, if it is whole and this trial's."""
        content = self.folder.read_state()
        if content is None:
            return None
        first, _, body = content.partition(b"\n")
        head = state_head(first)
        if head is None or head["checksum"] != xxhash.xxh3_128_hexdigest(body):
            self.refuse()
            return None
        if head["identity"] != self.identity:
            raise UserError(other_configuration(self.folder.state_place))
        return body if head["setting"] == self.setting else None

    def report(self, metrics: Metrics, state: State) -> None:
        """Keep an evaluation (on rank 0) and forward its metrics to the host (on all).

        Raises:
            OSError: The evaluation before could not be written.
        """
        if self.keeps:
            self.flush()
            self.curve.append({**metrics, "time": time.time()})
            content = io.BytesIO()
            torch.save({"loop": state, "curve": self.curve}, content)  # here: the next step changes it
            self._written = self._writer.submit(self._write, content.getbuffer(), list(self.curve))
        self.forward(metrics)

    def _write(self, body: memoryview, curve: list[Metrics]) -> None:
        self.folder.write_state(self._head(body) + body)
        self.folder.write_progress(_csv(curve), self._curve_file.of(curve))

    def flush(self) -> None:
        """Wait until all that was reported is written.

        Raises:
            OSError: It could not be written.
        """
        if self._written is not None:
            written, self._written = self._written, None
            written.result()

    def close(self) -> None:
        """Let the thread end what it is at."""
        self._writer.shutdown()

    def _head(self, body: memoryview) -> bytes:
        checksum = xxhash.xxh3_128_hexdigest(body)
        return json.dumps({"identity": self.identity, "setting": self.setting, "checksum": checksum}).encode() + b"\n"


def state_head(start: bytes) -> dict[str, str] | None:
    """The first line of a saved state: `identity`, `setting` and `checksum`; None if it is none."""
    try:
        head = parse_object(start.partition(b"\n")[0], "the first line", "")
        return {name: str(head[name]) for name in ("identity", "setting", "checksum")}
    except (UserError, KeyError):
        return None


def other_configuration(place: str) -> str:
    """What is wrong with a state of another identity, and what to do."""
    return (
        f"{place}: this unfinished trial was begun under another declaration or with other data; give the changed study "
        "another name, use another store, or remove the trial's folder to restart it"
    )


def _unpacked(body: bytes) -> tuple[list[Metrics], State]:
    """The curve and the loop's state; an error of any kind where it is not both."""
    saved = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    curve = saved["curve"]
    if not [float(point[name]) for point in curve for name in ("step", "time", "budget_share", *point)]:
        raise ValueError("no curve")
    return curve, saved["loop"]


def _csv(curve: list[Metrics]) -> str:
    text = io.StringIO()
    names = dict.fromkeys(name for point in curve for name in point)
    writer = csv.DictWriter(text, fieldnames=list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(curve)
    return text.getvalue()
