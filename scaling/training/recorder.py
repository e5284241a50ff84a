"""A trial's curve and the state it resumes from, kept in its folder."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable
from typing import Protocol

import torch
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from scaling.training.loop import State

Metrics = dict[str, float]


class Folder(Protocol):
    """Where a trial keeps its curve and the state it resumes from. Every worker's node must reach it."""

    def write_progress(self, csv: str, events: bytes) -> None:
        """Replace the curve."""

    def write_state(self, content: bytes) -> None:
        """Replace the state."""

    def read_state(self) -> bytes | None:
        """The last state, if any."""


class Recorder:
    """Keeps a trial's curve and state in its folder. The curve is part of the state: no point is lost or doubled."""

    def __init__(self, folder: Folder, identity: str, forward: Callable[[Metrics], None], *, keeps: bool) -> None:
        self.folder, self.identity, self.forward, self.keeps = folder, identity, forward, keeps
        self.curve: list[Metrics] = []

    def load(self) -> State | None:
        """The state to resume from, if this very trial left one."""
        content = self.folder.read_state()
        if content is None:
            return None
        saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if saved["identity"] != self.identity:
            return None
        self.curve = saved["curve"]
        return saved["loop"]

    def report(self, metrics: Metrics, state: State) -> None:
        """Keep an evaluation (on rank 0) and forward its metrics to the host (on all)."""
        if self.keeps:
            self.curve.append({**metrics, "time": time.time()})
            content = io.BytesIO()
            torch.save({"identity": self.identity, "loop": state, "curve": self.curve}, content)
            self.folder.write_state(content.getvalue())
            self.folder.write_progress(_csv(self.curve), _tensorboard_events(self.curve))
        self.forward(metrics)


def _csv(curve: list[Metrics]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(curve[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(curve)
    return text.getvalue()


def _tensorboard_events(curve: list[Metrics]) -> bytes:
    """The curve as a TensorBoard event file. It only ever grows at its end, so a live TensorBoard can follow it."""
    content = io.BytesIO()
    writer = RecordWriter(content)
    writer.write(Event(wall_time=curve[0]["time"], file_version="brain.Event:2").SerializeToString())
    for point in curve:
        scalars = [Summary.Value(tag=k, simple_value=v) for k, v in point.items() if k not in ("step", "time")]
        event = Event(wall_time=point["time"], step=int(point["step"]), summary=Summary(value=scalars))
        writer.write(event.SerializeToString())
    return content.getvalue()
