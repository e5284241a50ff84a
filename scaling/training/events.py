"""A trial's TensorBoard files: its curve, and data for the HPARAMS page. Written with TensorBoard's own writer."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.api_pb2 import Status
from tensorboard.plugins.hparams.metadata import SESSION_END_INFO_TAG, create_summary_metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo
from torch.utils.tensorboard import FileWriter
from torch.utils.tensorboard.summary import hparams, scalar

Metrics = Mapping[str, float]
HParams = Mapping[str, float | str]
CURVE = "curve"
"""Prefix of the curve's tags. TensorBoard groups tags by prefix, alphabetically: curves come before final metrics."""
NOT_DRAWN = ("step", "time", "budget_share", "epoch", "train_seconds")


def curve_events(curve: list[dict[str, float]], settings: HParams) -> bytes:
    """Event file with a trial's settings and its curve so far. The file of a longer curve extends this one.

    Only the first record differs, by its timestamp. Points of a shorter budget's own decay, after which steps restart from
    the fork, have separate tags.
    """

    def fill(writer: FileWriter) -> None:
        if settings:
            writer.add_summary(hparams(dict(settings), {})[1], 0, curve[0]["time"])
        for point in curve:
            group = CURVE if point["budget_share"] == 1 else f"{CURVE} at {point['budget_share']:g} of the budget"
            for name, value in point.items():
                if name not in NOT_DRAWN:
                    writer.add_summary(scalar(f"{group}/{name}", value), int(point["step"]), point["time"])

    return _written(fill)


class CurveFile:
    """A trial's curve as a TensorBoard file; each call encodes only the new points."""

    def __init__(self, settings: HParams) -> None:
        self.settings, self._points, self._content = settings, 0, b""

    def of(self, curve: list[dict[str, float]]) -> bytes:
        """The result of `curve_events` for a curve that extends the previous one."""
        added = curve_events(curve[self._points :], {} if self._content else self.settings)
        self._content += added[first_record(added) :] if self._content else added
        self._points = len(curve)
        return self._content


def first_record(events: bytes) -> int:
    """Length of a file's first record (format version and creation time), including its length field and checksums."""
    return int.from_bytes(events[:8], "little") + 16


def final_events(settings: HParams, metrics: Metrics, live: str, *, ended_well: bool) -> bytes:
    """Event file with the settings of a finished trial and its finite final metrics.

    HPARAMS has a column for each of these metrics, and one for the last point of the curve's metric `live`.
    """

    def fill(writer: FileWriter) -> None:
        final = {f"final/{name}": value for name, value in metrics.items()}
        experiment, session, _ = hparams(dict(settings), {**final, f"{CURVE}/{live}": math.nan})
        status = Status.STATUS_SUCCESS if ended_well else Status.STATUS_FAILURE  # PyTorch always writes STATUS_SUCCESS
        end = create_summary_metadata(HParamsPluginData(session_end_info=SessionEndInfo(status=status)))
        values = [scalar(name, value) for name, value in final.items() if math.isfinite(value)]
        for summary in (experiment, session, *values):
            writer.add_summary(summary, 0)
        writer.add_summary(Summary(value=[Summary.Value(tag=SESSION_END_INFO_TAG, metadata=end)]), 0)

    return _written(fill)


def _written(fill: Callable[[FileWriter], None]) -> bytes:
    """The content of an event file; the writer chooses the file's name, so it needs a folder."""
    with tempfile.TemporaryDirectory(prefix="spectral-scaling-events-") as scratch:
        writer = FileWriter(scratch)
        fill(writer)
        writer.close()
        (file,) = Path(scratch).iterdir()
        return file.read_bytes()
