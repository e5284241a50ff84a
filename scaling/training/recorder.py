"""A trial's curve and the state it resumes from, kept in its folder."""

from __future__ import annotations

import csv
import io
import json
import logging
import time
from collections.abc import Callable
from typing import Protocol

import torch
import xxhash
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from scaling.errors import UserError
from scaling.parse import parse_object
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
    """

    def __init__(
        self, folder: Folder, identity: str, setting: str, forward: Callable[[Metrics], None], *, keeps: bool
    ) -> None:
        self.folder, self.forward, self.keeps = folder, forward, keeps
        self.identity, self.setting = identity, setting
        self.curve: list[Metrics] = []

    def load(self) -> State | None:
        """The state to resume from, the same on all workers; None to begin.

        A file that is not what was written is set aside, and the trial begins anew: that gives the same result, later.

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
        """Set the state aside that cannot be resumed from, for the trial to begin anew. Called on all workers."""
        self.curve = []
        if self.keeps:
            LOG.warning("%s: damaged; it is set aside and the trial begins anew", self.folder.state_place)
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
        """Keep an evaluation (on rank 0) and forward its metrics to the host (on all)."""
        if self.keeps:
            self.curve.append({**metrics, "time": time.time()})
            content = io.BytesIO()
            torch.save({"loop": state, "curve": self.curve}, content)
            self.folder.write_state(self._head(content.getbuffer()) + content.getbuffer())
            self.folder.write_progress(_csv(self.curve), _tensorboard_events(self.curve))
        self.forward(metrics)

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
        "another name, use another store, or remove the trial's folder to begin it anew"
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


def _tensorboard_events(curve: list[Metrics]) -> bytes:
    """The curve as a TensorBoard event file. It only ever grows at its end, so a live TensorBoard can follow it.

    What was trained for a shorter budget alone, after which steps count from the fork again, has tags of its own.
    """
    content = io.BytesIO()
    writer = RecordWriter(content)
    writer.write(Event(wall_time=curve[0]["time"], file_version="brain.Event:2").SerializeToString())
    for point in curve:
        under = "" if point["budget_share"] == 1 else f"budget {point['budget_share']:g}/"
        scalars = [Summary.Value(tag=under + k, simple_value=v) for k, v in point.items() if k not in ("step", "time")]
        event = Event(wall_time=point["time"], step=int(point["step"]), summary=Summary(value=scalars))
        writer.write(event.SerializeToString())
    return content.getvalue()
