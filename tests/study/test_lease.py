"""Two drivers on a store without locks. Leases of a second or a few, not of a minute."""

import dataclasses
import json
import subprocess
import sys
import threading
import time

import pytest

from scaling.errors import UserError
from scaling.folder import Folder
from scaling.study.lease import Holder, lease

PATH = "mine/.running"
SECONDS = 0.6
DRIVER = f"""
import sys, time
from scaling.folder import Folder
from scaling.study.lease import lease
with lease(Folder.at(sys.argv[1]), "{PATH}", print, seconds=6.0):
    print("held", flush=True)
    time.sleep(60)
"""


def hold(folder, say=lambda line: None, seconds=SECONDS):
    return lease(folder, PATH, say, seconds=seconds)


def left_by(folder, **changes):
    """A lease that somebody left who does not renew it."""
    holder = dataclasses.replace(Holder.this_process(), token="other", **changes)
    folder.write(PATH, json.dumps(dataclasses.asdict(holder)).encode())


def test_a_second_driver_is_refused_until_the_first_is_killed(s3_server, tmp_path):
    folder, said = Folder.at(s3_server(tmp_path.name)), []
    with subprocess.Popen([sys.executable, "-c", DRIVER, folder.uri], stdout=subprocess.PIPE) as first:
        try:
            assert first.stdout.readline() == b"held\n"
            with (
                pytest.raises(UserError, match=rf"another `scaling run` \(process {first.pid} on"),
                hold(folder, said.append, 6.0),
            ):
                pytest.fail("both hold it")
        finally:
            first.kill()
    assert len(said) == 1
    with hold(folder, said.append):
        assert len(said) == 1, "the process is known to be dead: nothing is waited for"
    assert folder.read(PATH) is None


@pytest.mark.parametrize("left", [{"host": "elsewhere", "machine": "other"}, {}])
def test_a_lease_that_nobody_renews_is_taken_over_with_a_line_that_says_so(tmp_path, left):
    folder, said = Folder.at(tmp_path), []
    left_by(folder, **left)
    started = time.monotonic()
    with hold(folder, said.append):
        assert time.monotonic() - started >= SECONDS
        assert json.loads(folder.read(PATH))["token"] != "other"
    assert "if it is not renewed" in said[0]


def test_a_damaged_lease_is_nobodys_after_the_same_wait(tmp_path):
    folder = Folder.at(tmp_path)
    folder.write(PATH, b"[]")
    with hold(folder):
        assert Holder.parse(folder.read(PATH)).token


def test_of_some_that_take_a_free_lease_at_once_one_holds_it(tmp_path):
    folder, start, ended = Folder.at(tmp_path), threading.Barrier(4), threading.Barrier(4)
    held, refused = [], []

    def drive():
        start.wait()
        try:
            with hold(folder, seconds=30.0):
                held.append(None)
                ended.wait()
        except UserError:
            refused.append(None)
            ended.wait()

    drivers = [threading.Thread(target=drive) for _ in range(4)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join()
    assert (len(held), len(refused)) == (1, 3)


def test_a_driver_whose_lease_was_taken_is_interrupted_and_says_so(tmp_path):
    folder = Folder.at(tmp_path)

    def drive():
        with hold(folder):
            left_by(folder, host="elsewhere", pid=7)
            time.sleep(30)
            pytest.fail("not interrupted")

    with pytest.raises(UserError, match=r"process 7 on elsewhere.* took this study over") as raised:
        drive()
    assert "\n" not in str(raised.value)
    assert Holder.parse(folder.read(PATH)).pid == 7, "the other's stays"
