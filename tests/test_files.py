"""Files: whole or not at all, and never in place of what a command reads."""

import errno
import json
import math
import os
import stat

import numpy as np
import pytest

from scaling.errors import UserError
from scaling.files import (
    MODEL_STARTS,
    PARQUET_STARTS,
    FullError,
    check_output,
    is_full,
    json_bytes,
    location,
    output,
    private_folder,
    published,
    require_space,
    size_text,
    user_cache,
    write_json_output,
)


def refused(path, inputs=(), words="", **kind):
    """What is said of an output; nothing there is changed."""
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(UserError, match=words) as raised:
        check_output(path, inputs, **kind)
    with pytest.raises(UserError), output(path, inputs, **kind):
        pytest.fail("nothing is to be computed")
    assert before == (path.read_bytes() if path.is_file() else None)
    assert str(raised.value).startswith(f"{path}: ")
    assert str(raised.value).endswith("name another output")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("named", ["itself", "another name", "a link to it", "a hard link"])
def test_an_output_is_no_input(tmp_path, monkeypatch, named):
    table = tmp_path / "t.json"
    table.write_text("{}")
    (tmp_path / "link").symlink_to(table)
    os.link(table, tmp_path / "hard")
    monkeypatch.chdir(tmp_path)
    names = {"itself": table, "another name": "./t.json", "a link to it": tmp_path / "link"}
    refused(table, [names.get(named, tmp_path / "hard"), "s3://bucket/x", "experiments.demo"], "is an input")
    assert table.read_text() == "{}"


def test_nothing_is_written_in_a_folder_that_is_read(tmp_path):
    shards = tmp_path / "shards"
    (shards / "train").mkdir(parents=True)
    (shards / "manifest.json").write_text("{}")
    for inside in (shards / "manifest.json", shards / "new.json", shards / "train" / "new.json"):
        for given in (shards, f"file://{shards}"):
            refused(inside, [given], "an input of this command")
    check_output(tmp_path / "new.json", [shards])


def test_an_output_is_a_regular_file_in_a_folder(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    (tmp_path / "folder").mkdir()
    for name in ("fifo", "link", "folder"):
        refused(tmp_path / name, words="not a regular file")
    with pytest.raises(UserError, match="not a regular file"):
        check_output(type(tmp_path)("/dev/null"))
    refused(tmp_path / "absent" / "a.json", words="there is no folder")
    (tmp_path / "file").write_text("{}")
    with pytest.raises(UserError, match="there is no folder"):
        check_output(tmp_path / "file" / "a.json")


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_found_at_once(tmp_path):
    (tmp_path / "closed").mkdir()
    tmp_path.chmod(0o500)
    refused(tmp_path / "a.json", words="cannot be written")
    tmp_path.chmod(0o700)
    (tmp_path / "closed").chmod(0o000)
    for name in ("closed/a.json", "closed/below/a.json"):
        with pytest.raises(UserError, match="cannot be written"):
            check_output(tmp_path / name)
    (tmp_path / "closed").chmod(0o700)


@pytest.mark.parametrize(
    ("kind", "own", "foreign"),
    [
        ({}, b' {"a": 1}', b"N,D,loss\n"),
        ({"starts": PARQUET_STARTS}, b"PAR1....", b"\x89HDF\r\n"),
        ({"starts": MODEL_STARTS}, b"\x10\x00\x00\x00\x00\x00\x00\x00{}", b"{}"),
    ],
)
def test_only_an_earlier_output_is_replaced(tmp_path, kind, own, foreign):
    path = tmp_path / "out"
    for earlier in (b"", own):
        path.write_bytes(earlier)
        with output(path, **kind) as temporary:
            temporary.write_bytes(own)
        assert path.read_bytes() == own
    path.write_bytes(foreign)
    refused(path, words="this command did not write", **kind)
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("nameless", [True, False])
def test_a_file_is_there_when_it_is_whole_and_not_before(tmp_path, monkeypatch, nameless):
    if not nameless:
        monkeypatch.delattr(os, "O_TMPFILE")
    path = tmp_path / "a"
    path.write_bytes(b"previous")

    def fail_midway():
        with published(path) as temporary:
            temporary.write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_midway()
    assert (path.read_bytes(), os.listdir(tmp_path)) == (b"previous", ["a"])
    with published(path) as temporary:
        temporary.write_bytes(b"whole")
        assert path.read_bytes() == b"previous"
    assert (path.read_bytes(), os.listdir(tmp_path)) == (b"whole", ["a"])
    assert stat.S_IMODE(path.stat().st_mode) & 0o600 == 0o600


def test_a_full_disk_is_one_line(small_disk):
    path = small_disk(64_000) / "a.json"
    write_json_output(path, [1])
    with pytest.raises(FullError, match=r"a\.json: the disk is full") as raised:
        write_json_output(path, "x" * 1_000_000)
    assert "\n" not in str(raised.value)
    assert (json.loads(path.read_text()), os.listdir(path.parent)) == ([1], ["a.json"])
    with pytest.raises(FullError, match="the disk is full"):
        require_space(path.parent / "not" / "yet", 1_000_000)
    require_space("s3://bucket/x", 10**18)
    assert is_full(OSError(errno.EDQUOT, "over quota"))
    assert is_full(RuntimeError(f"h5py: errno 28, {os.strerror(errno.ENOSPC)}"))
    assert not is_full(PermissionError(errno.EACCES, "no"))


def test_json_has_no_word_for_nan(tmp_path):
    value = {
        "a": [math.nan, (1.5, -math.inf)],
        2: np.float64("nan"),
        "b": np.int64(3),
        "c": None,
        "d": "text",
        "e": True,
    }
    assert json.loads(json_bytes(value)) == {
        "a": [None, [1.5, None]],
        "2": None,
        "b": 3,
        "c": None,
        "d": "text",
        "e": True,
    }
    write_json_output(None, value)
    write_json_output(tmp_path / "a.json", value)
    assert (tmp_path / "a.json").read_bytes() == json_bytes(value)


def test_sizes_and_places_as_text(tmp_path):
    assert [size_text(size) for size in (0, 999, 1234, 5_000_000, 1.23e9)] == [
        "0 bytes",
        "999 bytes",
        "1.23 kB",
        "5 MB",
        "1.23 GB",
    ]
    assert location("s3://bucket/x") == "s3://bucket/x"
    assert location(str(tmp_path)) == tmp_path


def test_a_private_folder_is_made_and_kept(tmp_path):
    path = tmp_path / "a" / "b"
    for _ in range(2):
        assert private_folder(path) == path
        assert [stat.S_IMODE(each.stat().st_mode) for each in (path.parent, path)] == [0o700, 0o700]


def test_a_folder_that_another_user_could_write_or_replace_is_refused(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "file").write_text("")
    for name, words in (("link", "real folder"), ("open", "real folder"), ("open/below", "can replace it")):
        with pytest.raises(UserError, match=words):
            private_folder(tmp_path / name)
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="cannot be made"):
            private_folder(path)
    (tmp_path / "open").chmod(0o1777)  # as /tmp: nobody else can rename what is in it
    private_folder(tmp_path / "open" / "mine")


@pytest.mark.skipif(os.getuid() != 0, reason="needs root")
def test_a_folder_of_another_user_is_refused(tmp_path):
    (tmp_path / "theirs" / "mine").mkdir(parents=True)
    os.chown(tmp_path / "theirs", 65534, 65534)
    for path in (tmp_path / "theirs", tmp_path / "theirs" / "mine"):
        with pytest.raises(UserError):
            private_folder(path)


def test_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for given in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", given)
        assert user_cache("maps") == tmp_path / ".cache" / "spectral-scaling" / "maps"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert user_cache("maps") == tmp_path / "other" / "spectral-scaling" / "maps"
