"""A folder, local or on an object store: the same words do the same."""

import os
import time

import pytest

from scaling.errors import UserError
from scaling.files import FullError
from scaling.folder import Folder, retrying
from tests import s3


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
    folder.delete_folder("x")
    folder.delete_folder("x")
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
    assert time.monotonic() - started < 15
