"""Whole files: never half of one, whatever happens while they are written."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from scaling.errors import UserError
from scaling.study.files import FULL, Store, StoreFullError
from scaling.study.store import StudyFolder
from tests.study.example import example_row


def run_python(text, *arguments):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text), *map(str, arguments)], capture_output=True, text=True, timeout=60
    )


def test_a_process_killed_in_the_middle_of_a_write_leaves_the_previous_file(tmp_path):
    trial = StudyFolder(Store(str(tmp_path)), "mine").trial("t")
    trial.write_state(b"previous")
    killed = run_python(
        """
        import os, signal, sys
        from scaling.study.files import Store

        class Stream:
            def __init__(self, stream):
                self.stream = stream
            def __enter__(self):
                return self
            def __exit__(self, *error):
                self.stream.close()
            def write(self, content):
                self.stream.write(content[: len(content) // 2])
                self.stream.flush()
                os.kill(os.getpid(), signal.SIGKILL)

        class System:
            def __init__(self, system):
                self.system = system
            def open_output_stream(self, path):
                return Stream(self.system.open_output_stream(path))
            def __getattr__(self, name):
                return getattr(self.system, name)

        really = Store._open
        Store._open = lambda store: (System(really(store)[0]), really(store)[1])
        Store(sys.argv[1]).write("mine/trials/t/state.pt", bytes(1_000_000))
        """,
        tmp_path,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (partial,) = (tmp_path / "mine/trials/t").glob("*.partial")
    assert partial.stat().st_size == 500_000
    assert trial.read_state() == b"previous"
    trial.write_row(example_row())
    assert [path.name for path in (tmp_path / "mine/trials/t").iterdir()] == ["row.json"]


def limited(text, store, limit):
    """Run a text in a process that may write files of so many bytes."""
    head = f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    return run_python(head + textwrap.dedent(text), store)


def test_a_file_there_is_no_room_for_leaves_the_previous_one_and_says_so(tmp_path):
    store = Store(str(tmp_path))
    store.write("a/state.pt", b"previous")
    full = limited(
        """
        from scaling.study.files import Store, StoreFullError
        try:
            Store(sys.argv[1]).write("a/state.pt", bytes(200_000))
        except StoreFullError as error:
            print(error)
        """,
        tmp_path,
        100_000,
    )
    assert full.stdout.startswith(f"{FULL} --store {tmp_path}: 200,000 bytes of a/state.pt"), full.stderr
    assert "the same command" in full.stdout
    assert store.read("a/state.pt") == b"previous"
    assert store.files("a") == ["state.pt"]


@pytest.mark.skipif(os.getuid() != 0, reason="needs a file system of its own")
def test_a_full_disk(tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", tmp_path], check=False).returncode:
        pytest.skip("may not mount")
    try:
        store = Store(str(tmp_path))
        store.write("a/state.pt", b"previous")
        with pytest.raises(StoreFullError, match="no room in the store"):
            store.write("a/state.pt", bytes(1_000_000))
        assert (store.read("a/state.pt"), store.files("a")) == (b"previous", ["state.pt"])
        store.write("a/state.pt", b"there is room for this")
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_other_faults_are_not_called_full(tmp_path):
    (tmp_path / "a").write_bytes(b"a file where a folder is needed")
    with pytest.raises(OSError) as raised:  # noqa: PT011
        Store(str(tmp_path)).write("a/b", b"1")
    assert not isinstance(raised.value, UserError)


def test_the_first_bytes_of_a_file(tmp_path):
    store = Store(str(tmp_path))
    store.write("a", b"0123456789")
    assert (store.read("a", 4), store.read("a", 40), store.read("b", 4)) == (b"0123", b"0123456789", None)
