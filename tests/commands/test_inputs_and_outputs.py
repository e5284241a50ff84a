"""What commands read and write: a user's mistake is one clear line on stderr and exit status 2."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import h5py
import pytest

from scaling.__main__ import main
from scaling.study.store import Store, StudyFolder
from tests.commands.refusals import mistake


def test_inspect_says_what_a_shard_set_and_its_sources_are(capsys, shards):
    assert main(["inspect", str(shards)]) == 0
    assert "300 spectra in 3 shards" in capsys.readouterr().out
    assert main(["inspect", str(shards.parent / "hdf5" / "val" / "dataset.h5")]) == 0
    assert "64 spectra of 1024 pixels" in capsys.readouterr().out


def test_inspect_of_nothing_known(capsys, tmp_path):
    assert "no such" in mistake(capsys, "inspect", tmp_path / "missing")
    assert "manifest.json" in mistake(capsys, "inspect", tmp_path)
    (tmp_path / "text.h5").write_text("not HDF5")
    assert "text.h5" in mistake(capsys, "inspect", tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    assert "other.h5" in mistake(capsys, "inspect", tmp_path / "other.h5")


def test_wrong_numbers_on_the_command_line(capsys, tmp_path):
    assert "mfu" in mistake(capsys, "plan", "experiments.demo", "--mfu", 20)
    assert "--store" in mistake(capsys, "plan", "experiments.demo", "--measure")
    assert "at most 10000" in mistake(capsys, "plan", "experiments.demo", "--nodes", 10**9)
    assert "--nodes 0" in mistake(capsys, "plan", "experiments.demo", "--nodes", 0)
    assert "--gpus-per-node" in mistake(
        capsys, "plan", "experiments.bosz_1m", "--cpus-per-node", 8, "--gpus-per-node", 0
    )
    assert "999" in mistake(capsys, "simulate", tmp_path / "out", "--pixels", 999)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (["inspect", "{model}"], "{model}"),
        (["inspect", "{spectra}", "{shards}"], "{shards}/manifest.json"),
        (["limit", "{shards}"], "{shards}/manifest.json"),
        (["limit", "{spectra}"], "{spectra}"),
        (["plan", "{study}"], "{study}"),
        (["status", "{study}", "--store", "{store}"], "{store}/mine/study.json"),
        (["evaluate", "{model}", "{shards}"], "{model}"),
        (["evaluate", "{model}", "{shards}"], "{shards}/manifest.json"),
    ],
)
def test_no_json_is_written_in_place_of_an_input(capsys, tmp_path, study_file, shards, monkeypatch, command, named):
    places = {"model": tmp_path / "m.safetensors", "spectra": tmp_path / "s.h5", "store": tmp_path / "store"}
    places |= {"shards": shutil.copytree(shards, tmp_path / "shards"), "study": study_file()}
    places["model"].write_bytes(bytes(8) + b"{}")
    shutil.copy(shards.parent / "hdf5" / "test" / "dataset.h5", places["spectra"])
    StudyFolder(Store(str(places["store"])), "mine").write_declaration(b"{}")
    path = Path(named.format(**places))
    before = path.read_bytes()
    (tmp_path / "link.json").symlink_to(path)
    for out in (path, tmp_path / "link.json"):
        error = mistake(capsys, *(word.format(**places) for word in command), "--json", out)
        assert str(out) in error
        assert "name another output" in error
    assert path.read_bytes() == before


def test_a_json_that_cannot_be_written_is_refused_before_anything_is_done(capsys, tmp_path, shards, monkeypatch):
    monkeypatch.setattr("scaling.inspect.inspect", lambda *_: pytest.fail("too late"))
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "table.csv").write_text("N,D,loss\n")
    for out, words in (
        (tmp_path / "absent" / "a.json", "there is no folder"),
        (tmp_path / "fifo", "not a regular file"),
        ("/dev/null", "not a regular file"),
        (tmp_path, "not a regular file"),
        (tmp_path / "table.csv", "this command did not write"),
    ):
        assert words in mistake(capsys, "inspect", shards, "--json", out)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_inspect_waits_for_no_fifo_and_no_device(capsys, tmp_path):
    os.mkfifo(tmp_path / "fifo.h5")
    for path in (tmp_path / "fifo.h5", "/dev/zero"):
        assert "neither a regular file nor a folder" in mistake(capsys, "inspect", path)


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied", "a.h5"), IsADirectoryError(21, "Is a directory", "a.h5")]
)
def test_an_error_of_the_system_is_one_line(capsys, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr("scaling.inspect.inspect", fail)
    assert f"a.h5: {error.strerror}" in mistake(capsys, "inspect", "a.h5")


def test_a_failure_that_is_nobodys_mistake_is_one_line_too(capsys, monkeypatch):
    def fail(*_):
        raise OSError("When reading: AWS Error NETWORK_CONNECTION\n twice")

    monkeypatch.setattr("scaling.inspect.inspect", fail)
    assert main(["inspect", "s3://bucket/x"]) == 1
    assert capsys.readouterr().err == (
        "scaling: When reading: AWS Error NETWORK_CONNECTION twice; run the same command again\n"
    )


def test_the_parser_needs_nothing_heavy():
    """`scaling --help` is there at once."""
    code = "import sys; from scaling.__main__ import _parser; _parser(); print(*{'torch', 'ray', 'numpy'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
