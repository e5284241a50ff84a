"""A trial's curve and its resumable state, stored in its folder."""

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
    """Storage of a trial's curve and resumable state. Writes are atomic for readers."""

    @property
    def state_place(self) -> str:
        """Path or URI of the state, for messages."""

    def write_progress(self, csv: str, events: bytes) -> None:
        """Replace the curve."""

    def write_state(self, content: bytes) -> None:
        """Replace the state; if this fails, the previous one is kept."""

    def read_state(self) -> bytes | None:
        """The last state, or None."""

    def set_state_aside(self) -> None:
        """Rename a damaged state, so that it is not read again."""


class Recorder:
    """Stores a trial's curve and state in its folder; the state includes the curve, so no point is lost or doubled.

    A state is resumed only by the trial that wrote it: same `identity` (everything declared) and same `setting` (chosen by
    the search). A state with another setting is replaced, since the search has changed its choice. Rank 0 `keeps` them.
    `shown` are the trial's settings on TensorBoard's HPARAMS page.

    Evaluations are written by a thread while training continues, one at a time: call `flush` before anything that
    relies on them. A killed process loses at most the evaluation being written.
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
        """The state to resume from, the same on all workers; None to start from scratch.

        A damaged file is set aside, and the trial restarts from step 0, with the same result.

        Raises:
            UserError: The state is of another declaration or other data. One worker raises it while others wait.
        """
        found = [self._read() if self.keeps else None]
        if torch.distributed.is_initialized():  # rank 0 reads: a shared file system may serve others a stale file
            torch.distributed.broadcast_object_list(found)
        if found[0] is None:
            return None
        try:
            self.curve, state = _unpacked(found[0])
            return state
        except Exception:  # PyTorch raises arbitrary errors for damaged content
            self.refuse()
            return None

    def refuse(self) -> None:
        """Set aside a state that cannot be resumed, so that the trial restarts. Called on all workers."""
        self.curve = []
        if self.keeps:
            LOG.warning("%s: damaged; it is set aside and the trial restarts from step 0", self.folder.state_place)
            self.folder.set_state_aside()

    def _read(self) -> bytes | None:
        """The saved state without its header line, if it is intact and belongs to this trial."""
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
        """Store an evaluation (on rank 0) and forward its metrics to the host (on all).

        Raises:
            OSError: The previous evaluation could not be written.
        """
        if self.keeps:
            self.flush()
            self.curve.append({**metrics, "time": time.time()})
            content = io.BytesIO()
            torch.save({"loop": state, "curve": self.curve}, content)  # serialised now: the next step changes the state
            self._written = self._writer.submit(self._write, content.getbuffer(), list(self.curve))
        self.forward(metrics)

    def _write(self, body: memoryview, curve: list[Metrics]) -> None:
        self.folder.write_state(self._head(body) + body)
        self.folder.write_progress(_csv(curve), self._curve_file.of(curve))

    def flush(self) -> None:
        """Wait until all reports are written.

        Raises:
            OSError: A report could not be written.
        """
        if self._written is not None:
            written, self._written = self._written, None
            written.result()

    def close(self) -> None:
        """Wait for the thread to finish its current write."""
        self._writer.shutdown()

    def _head(self, body: memoryview) -> bytes:
        checksum = xxhash.xxh3_128_hexdigest(body)
        return json.dumps({"identity": self.identity, "setting": self.setting, "checksum": checksum}).encode() + b"\n"


def state_head(start: bytes) -> dict[str, str] | None:
    """The header line of a saved state: `identity`, `setting` and `checksum`; None if it has none."""
    try:
        head = parse_object(start.partition(b"\n")[0], "the first line", "")
        return {name: str(head[name]) for name in ("identity", "setting", "checksum")}
    except (UserError, KeyError):
        return None


def other_configuration(place: str) -> str:
    """The error message for a state of another identity, with the remedy."""
    return (
        f"{place}: this unfinished trial was begun under another declaration or with other data; give the changed study "
        "another name, use another store, or remove the trial's folder to restart it"
    )


def _unpacked(body: bytes) -> tuple[list[Metrics], State]:
    """Unpickle the curve and the loop's state; raises any kind of error if the content is damaged."""
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
