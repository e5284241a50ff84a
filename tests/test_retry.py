"""Calls to a store that is out of reach for a while."""

import os

import pytest

from scaling import retry
from scaling.errors import UserError
from scaling.retry import PATIENCE, patient, retrying


class Clock:
    """Time that passes only in waits, which are kept."""

    def __init__(self):
        self.now, self.waits = 0.0, []

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.waits.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.delenv(PATIENCE, raising=False)
    monkeypatch.setattr(retry, "time", Clock())
    return retry.time


def failing(error, times=10**6, seconds=0.0):
    """A function that fails so many times, each after so many seconds, and a list of its calls."""
    calls = []

    def function():
        calls.append(None)
        if len(calls) <= times:
            retry.time.now += seconds
            raise error
        return len(calls)

    return function, calls


def test_passing_errors_are_tried_again_with_growing_waits_up_to_the_limit(clock):
    function, _ = failing(OSError("connection reset"), times=2)
    assert retrying(function) == 3
    assert clock.waits == [0.5, 1.0]
    function, calls = failing(OSError("timed out"), seconds=6)
    with pytest.raises(OSError, match="timed out"):
        retrying(function)
    assert len(calls) == 2


def test_a_sweep_waits_through_an_outage_of_half_a_minute(clock, monkeypatch):
    function, _ = failing(OSError("connection reset"), times=5, seconds=6)
    with patient():
        assert retrying(function) == 6
    assert PATIENCE not in os.environ
    monkeypatch.setenv(PATIENCE, "soon")
    with pytest.raises(UserError, match="SCALING_PATIENCE = soon"), patient():
        retrying(function)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("a"),
        PermissionError("a"),
        OSError(28, "No space left on device"),
        OSError("AWS Error ACCESS_DENIED during PutObject operation"),
    ],
)
def test_lasting_errors_are_not_tried_again(clock, error):
    function, calls = failing(error)
    with pytest.raises(type(error)):
        retrying(function)
    assert len(calls) == 1
