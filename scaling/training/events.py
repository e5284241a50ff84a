"""A trial's TensorBoard files: its curve, and what the HPARAMS page compares. Written by TensorBoard's own writer."""

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
"""TensorBoard groups by what stands before a slash, in alphabetical order: curves come before final metrics."""
NOT_DRAWN = ("step", "time", "budget_share", "epoch", "train_seconds")


def curve_events(curve: list[dict[str, float]], settings: HParams) -> bytes:
    """The settings of a trial and its curve so far. A longer curve's file is this one, grown at its end.

    Only the first record differs, by the time of writing. What was trained for a shorter budget alone, after which steps
    count from the fork again, has tags of its own.
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
    """A trial's curve as TensorBoard's file, of which each call encodes the points that are new."""

    def __init__(self, settings: HParams) -> None:
        self.settings, self._points, self._content = settings, 0, b""

    def of(self, curve: list[dict[str, float]]) -> bytes:
        """`curve_events` of a curve that begins with the one before."""
        added = curve_events(curve[self._points :], {} if self._content else self.settings)
        self._content += added[first_record(added) :] if self._content else added
        self._points = len(curve)
        return self._content


def first_record(events: bytes) -> int:
    """The length of a file's first record, which says the format and when it was made: a length before it, checksums around it."""
    return int.from_bytes(events[:8], "little") + 16


def final_events(settings: HParams, metrics: Metrics, live: str, *, ended_well: bool) -> bytes:
    """The settings of a finished trial with its final metrics, those that are numbers.

    HPARAMS has a column for each of these metrics, and one for the last point of the `live` one of the curve.
    """

    def fill(writer: FileWriter) -> None:
        final = {f"final/{name}": value for name, value in metrics.items()}
        experiment, session, _ = hparams(dict(settings), {**final, f"{CURVE}/{live}": math.nan})
        status = Status.STATUS_SUCCESS if ended_well else Status.STATUS_FAILURE  # PyTorch's own is always the first
        end = create_summary_metadata(HParamsPluginData(session_end_info=SessionEndInfo(status=status)))
        values = [scalar(name, value) for name, value in final.items() if math.isfinite(value)]
        for summary in (experiment, session, *values):
            writer.add_summary(summary, 0)
        writer.add_summary(Summary(value=[Summary.Value(tag=SESSION_END_INFO_TAG, metadata=end)]), 0)

    return _written(fill)


def _written(fill: Callable[[FileWriter], None]) -> bytes:
    """The content of the file that the writer makes; it names the file itself, and needs a folder."""
    with tempfile.TemporaryDirectory(prefix="spectral-scaling-events-") as scratch:
        writer = FileWriter(scratch)
        fill(writer)
        writer.close()
        (file,) = Path(scratch).iterdir()
        return file.read_bytes()
