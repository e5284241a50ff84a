"""A trial's TensorBoard files: its curve, and data for the HPARAMS page. Encoded in memory by TensorBoard's own writer."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Iterable, Mapping

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.api_pb2 import Status
from tensorboard.plugins.hparams.metadata import SESSION_END_INFO_TAG, create_summary_metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import hparams, scalar

Metrics = Mapping[str, float]
HParams = Mapping[str, float | str]
CURVE = "curve"
"""Prefix of the curve's tags. TensorBoard groups tags by prefix, alphabetically: curves come before final metrics."""
NOT_DRAWN = ("step", "time", "budget_share", "epoch", "train_seconds")


class CurveFile:
    """Event file with a trial's settings and its curve so far. The file of a longer curve extends this one.

    Each call encodes only the new points. Points of a shorter budget's own decay, after which steps restart from the fork,
    have separate tags.
    """

    def __init__(self, settings: HParams) -> None:
        self.settings, self._points, self._content = settings, 0, b""

    def of(self, curve: list[dict[str, float]]) -> bytes:
        """The content for a curve that extends the previous one."""
        events: list[Event] = []
        if not self._points:
            events.append(_version(curve[0]["time"]))
            if self.settings:
                events.append(Event(wall_time=curve[0]["time"], summary=hparams(dict(self.settings), {})[1]))
        for point in curve[self._points :]:
            group = CURVE if point["budget_share"] == 1 else f"{CURVE} at {point['budget_share']:g} of the budget"
            events += [
                Event(wall_time=point["time"], step=int(point["step"]), summary=scalar(f"{group}/{name}", value))
                for name, value in point.items()
                if name not in NOT_DRAWN
            ]
        self._content += _encoded(events)
        self._points = len(curve)
        return self._content


def final_events(settings: HParams, metrics: Metrics, live: str, *, ended_well: bool) -> bytes:
    """Event file with the settings of a finished trial and its finite final metrics.

    HPARAMS has a column for each of these metrics, and one for the last point of the curve's metric `live`.
    """
    now, final = time.time(), {f"final/{name}": value for name, value in metrics.items()}
    experiment, session, _ = hparams(dict(settings), {**final, f"{CURVE}/{live}": math.nan})
    status = Status.STATUS_SUCCESS if ended_well else Status.STATUS_FAILURE  # PyTorch always writes STATUS_SUCCESS
    metadata = create_summary_metadata(HParamsPluginData(session_end_info=SessionEndInfo(status=status)))
    end = Summary(value=[Summary.Value(tag=SESSION_END_INFO_TAG, metadata=metadata)])
    values = [scalar(name, value) for name, value in final.items() if math.isfinite(value)]
    summaries = (experiment, session, *values, end)
    return _encoded([_version(now), *(Event(wall_time=now, summary=summary) for summary in summaries)])


def _version(created: float) -> Event:
    """The first record of an event file."""
    return Event(wall_time=created, file_version="brain.Event:2")


def _encoded(events: Iterable[Event]) -> bytes:
    content = io.BytesIO()
    writer = RecordWriter(content)
    for event in events:
        writer.write(event.SerializeToString())
    return content.getvalue()
