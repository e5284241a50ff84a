"""A folder, local or on an object store: the same words do the same."""

import os
import resource
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from scaling.__main__ import main
from scaling.errors import UserError
from scaling.files import FullError
from scaling.folder import Folder
from scaling.study.declaration import Sources
from tests import s3

LONGEST_SECONDS = 15


@pytest.fixture(params=["local", "s3"])
def folder(request, tmp_path):
    """An empty folder, local or on the server."""
    if request.param == "local":
        return Folder.at(tmp_path / "folder")
    return Folder.at(request.getfixturevalue("s3_server")(tmp_path.name))


def test_what_is_written_is_read_listed_renamed_and_deleted(folder):
    assert (folder.read("a/b.json"), folder.size("a/b.json"), folder.files("a"), folder.folders()) == (
        None,
        None,
        [],
        [],
    )
    folder.write("a/b.json", b"123456")
    assert (folder.read("a/b.json"), folder.read("a/b.json", 3), folder.size("a/b.json")) == (b"123456", b"123", 6)
    assert (folder.files("a"), folder.folders(), folder.size("a")) == (["b.json"], ["a"], None)
    folder.rename("a/b.json", "a/c.json")
    folder.write("a/c.json", b"another")
    assert (folder.read("a/b.json"), folder.read("a/c.json")) == (None, b"another")
    folder.delete("a/c.json")
    folder.delete("a/c.json")
    assert folder.files("a") == []
    folder.write("x/y/z", b"")
    assert folder.read("x/y/z") == b""
    folder.write("x/y.json", b"1")
    assert folder.tree("x") == ["y", "y.json", "y/z"]
    assert (folder.write_if_absent("x/y.json", b"2"), folder.read("x/y.json")) == (False, b"1")
    assert (folder.write_if_absent("x/w/v", b"2"), folder.read("x/w/v")) == (True, b"2")
    folder.delete_folder("x")
    folder.delete_folder("x")
    assert folder.tree("x") == []
    assert (folder.read("x/y/z"), folder.files("x/y"), "x" in folder.folders()) == (None, [], False)
    folder.check_writable()
    assert folder.files() == []


def test_a_large_file_and_a_range_of_it(folder):
    content = os.urandom(20_000_000)  # more than a part of a multipart upload
    folder.write("large", content)
    assert folder.size("large") == len(content)
    assert folder.read("large") == content
    with folder.open("large") as file:
        file.seek(15_000_000)
        assert file.read(100) == content[15_000_000:15_000_100]
    with pytest.raises(FileNotFoundError):
        folder.open("missing")


def test_a_bucket_that_is_not_there_is_one_line(s3_server):
    started = time.monotonic()
    with pytest.raises(UserError, match="cannot be written") as raised:
        Folder.at(s3_server("x", bucket="absent")).check_writable()
    assert "\n" not in str(raised.value)
    assert time.monotonic() - started < LONGEST_SECONDS


@pytest.mark.slow
def test_a_server_that_is_not_there_is_one_line(free_port):
    started = time.monotonic()
    with pytest.raises(UserError, match="cannot be written") as raised:
        Folder.at(s3.location(free_port)).check_writable()
    assert "\n" not in str(raised.value)
    assert time.monotonic() - started < LONGEST_SECONDS


@pytest.mark.parametrize(
    "place",
    [
        "s3://KEY:hush@bucket/x",
        "s3://KEY:hu/sh@bucket/x?region=a",
        "abfs://a:hush@b.net/x",
        "gs://:hush@b",
        "s3://bucket/x?region=a&secret_key=hush",
        "abfs://c@a.net/x?tenant_id=t&Client_Secret=hush",
        "abfs://c@a.net/x?sv=2024&sig=hush",
    ],
)
def test_an_address_with_a_password_is_refused_and_not_repeated(place, capsys, tmp_path):
    sources = {"train": (tmp_path / "a.h5",), "val": tmp_path / "b.h5", "test": tmp_path / "c.h5"}
    for use in (Folder.at, lambda place: Sources(shards=place, **sources)):
        with pytest.raises(UserError, match="holds a password") as raised:
            use(place)
        assert "hu" not in str(raised.value)
        assert "\n" not in str(raised.value)
    assert main(["run", "experiments.smoke", "--store", place]) == 2
    assert main(["inspect", place]) == 2
    said = capsys.readouterr()
    assert "hush" not in said.out + said.err
    assert "hu/sh" not in said.out + said.err


@pytest.mark.parametrize(
    "place",
    [
        "s3://bucket/a:b",
        "abfs://container@account/x?credential_kind=environment&client_id=c",
        "hdfs://host:8020/a@b",
        "s3://b/x@y",
        "s3://b/secret_key=1?scheme=http&endpoint_override=127.0.0.1:9000",
    ],
)
def test_other_addresses_with_such_signs_are_none(place):
    assert Folder.at(place).uri == place


def test_a_key_that_is_refused_is_not_repeated(s3_server):
    command = [sys.executable, "-m", "scaling", "inspect", s3_server("of-another")]
    settings = os.environ | {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "hush-hush"}
    done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "ACCESS_DENIED" in done.stderr or "SIGNATURE" in done.stderr.upper()
    assert "hush" not in done.stdout + done.stderr


def test_what_cannot_be_opened_is_one_line():
    with pytest.raises(UserError, match="cannot be opened"):
        Folder.at("nonsense://x").read("a")


@pytest.mark.parametrize("status", [500, None])
def test_requests_that_fail_for_a_while_are_made_again(s3_server, tmp_path, status):
    with s3.Proxy(s3.port_of(s3_server())) as proxy:
        there, name = Folder.at(s3.location(proxy.port)), tmp_path.name
        proxy.status = status
        proxy.faults = {
            ("PUT", f"{name}/a"): 2,
            ("GET", f"{name}/a"): 1,
            ("GET", f"prefix={name}"): 1,
            ("HEAD", name): 1,
        }
        there.write(f"{name}/a", b"123456")
        assert (there.read(f"{name}/a"), there.files(name), there.tree(name)) == (b"123456", ["a"], ["a"])
        assert proxy.failed == 5


def test_an_object_is_written_by_one_request_and_read_by_two_of_one_client(s3_server, tmp_path):
    with s3.Proxy(s3.port_of(s3_server())) as proxy:
        first, second = (Folder.at(s3.location(proxy.port, f"{tmp_path.name}/{name}")) for name in "ab")
        first.write("x/y/z", b"1")
        second.write("x/y/z", b"2")
        assert first.read("x/y/z") == b"1"
        assert [method for method, _ in proxy.requests] == ["PUT", "PUT", "HEAD", "GET"]
        assert first._open()[0] is second._open()[0]


def run_python(text, *arguments, file_limit=None):
    limit = None if file_limit is None else lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    code = [sys.executable, "-c", textwrap.dedent(text), *map(str, arguments)]
    return subprocess.run(code, capture_output=True, text=True, timeout=60, preexec_fn=limit)


@pytest.mark.parametrize("nameless", [True, False])
def test_a_process_killed_in_the_middle_of_a_write_leaves_the_previous_file(tmp_path, nameless):
    folder = Folder.at(tmp_path)
    folder.write("a/state.pt", b"previous")
    killed = run_python(
        """
        import os, signal, sys
        from scaling.folder import Folder

        if sys.argv[2] == "False":
            del os.O_TMPFILE
        with Folder.at(sys.argv[1]).writing("a/state.pt") as stream:
            stream.write(bytes(500_000))
            stream.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        """,
        tmp_path,
        nameless,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert folder.read("a/state.pt") == b"previous"
    left = [file for file in folder.files("a") if file != "state.pt"]
    assert [file.endswith(".tmp") for file in left] == [] if nameless else [True]


def test_a_file_there_is_no_room_for_leaves_the_previous_one_and_says_so(tmp_path):
    folder = Folder.at(tmp_path)
    folder.write("a/state.pt", b"previous")
    full = run_python(
        """
        import sys
        from scaling.files import FullError
        from scaling.folder import Folder
        try:
            Folder.at(sys.argv[1]).write("a/state.pt", bytes(200_000))
        except FullError as error:
            print(error)
        """,
        tmp_path,
        file_limit=100_000,
    )
    assert full.stdout.startswith(f"{tmp_path}: no room: a/state.pt"), full.stderr
    assert "the same command" in full.stdout
    assert (folder.read("a/state.pt"), folder.files("a")) == (b"previous", ["state.pt"])


def test_a_full_disk(small_disk):
    folder = Folder.at(small_disk(256_000))
    folder.write("a/state.pt", b"previous")
    with pytest.raises(FullError, match="no room"):
        folder.write("a/state.pt", bytes(1_000_000))
    assert (folder.read("a/state.pt"), folder.files("a")) == (b"previous", ["state.pt"])
    folder.write("a/state.pt", b"there is room for this")


def test_other_faults_are_not_called_full(tmp_path):
    (tmp_path / "a").write_bytes(b"a file where a folder is needed")
    with pytest.raises(OSError) as raised:  # noqa: PT011
        Folder.at(tmp_path).write("a/b", b"1")
    assert not isinstance(raised.value, UserError)


def test_what_is_no_regular_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    folder = Folder.at(tmp_path)
    assert (folder.read("fifo"), folder.size("fifo"), folder.files()) == (None, None, [])


@pytest.mark.parametrize("listing", ["files", "tree"])
def test_a_folder_created_while_it_is_listed_is_listed_again(listing, tmp_path, monkeypatch):
    """Arrow, asked to allow a missing folder, fails to open it, then asks whether it exists, and raises if it does."""
    folder = Folder(str(tmp_path))
    filesystem, root = folder._open()

    class CreatedInBetween:
        def get_file_info(self, selector):
            if not (tmp_path / "trial").exists():
                (tmp_path / "trial").mkdir()
                (tmp_path / "trial/row.json").touch()
                raise FileNotFoundError(f"Cannot list directory {selector.base_dir}")
            return filesystem.get_file_info(selector)

    monkeypatch.setattr(Folder, "_open", lambda _: (CreatedInBetween(), root))
    assert getattr(folder, listing)("trial") == ["row.json"]
