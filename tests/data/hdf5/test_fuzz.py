"""Whatever is done to a file of spectra: it is described and read, or refused in one line, and soon."""

import signal
import warnings
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaling.data.hdf5.describe import describe
from scaling.errors import UserError
from tests.data.hdf5 import hostile
from tests.data.hdf5.test_hostile import use

SECONDS = 60
CHANGES = [change for change, _ in (hostile.EDITS | hostile.FAULTY_ROWS).values()] + list(hostile.SOUND.values())


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "dataset.h5"


@pytest.fixture(scope="module")
def sound(path):
    """The bytes of files without fault, of both of pandas' formats, and where they are not zero."""
    found = []
    with warnings.catch_warnings(action="ignore"):
        for change in (lambda path: None, hostile.SOUND["text in the fixed format"]):
            change(hostile.write(path))
            found.append((path.read_bytes(), [at for at, byte in enumerate(path.read_bytes()) if byte]))
    return found


@contextmanager
def time_limit():
    def stop(*_):
        raise TimeoutError(f"not done in {SECONDS} s")  # the door of the reader would hide it, so the test looks for it

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def check(path):
    for function in (use, describe):
        said = []
        with time_limit():
            try:
                found = function(path)
                said = found.problems if found else []
            except UserError as mistake:
                said = [str(mistake)]
        assert not any("\n" in line or "not done in" in line for line in said)
    assert not path.with_name("executed").exists()


@settings(max_examples=200, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_bytes_that_are_flipped_or_missing(sound, path, data):
    content, places = data.draw(st.sampled_from(sound), label="format")
    content = bytearray(content)
    place = st.one_of(st.sampled_from(places), st.integers(0, len(content) - 1))
    for at, byte in data.draw(st.dictionaries(place, st.integers(0, 255), max_size=12), label="bytes").items():
        content[at] = byte
    path.write_bytes(
        content[: data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))), label="length")]
    )
    check(path)


@settings(max_examples=100, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(changes=st.lists(st.sampled_from(CHANGES), min_size=1, max_size=4))
def test_edits_one_after_the_other(path, changes):
    hostile.write(path)
    for change in changes:
        with warnings.catch_warnings(action="ignore"):
            try:
                change(path)
            except Exception:  # an edit that what came before has made impossible
                continue
    check(path)
