"""`scaling inspect`: words, JSON and exit status agree on what is wrong."""

import json
import shutil

import h5py
import numpy as np
import pytest

from scaling.__main__ import main
from scaling.data.hdf5.reader import FLUX_ARRAY
from scaling.inspect import inspect
from scaling.study.store import Store, StudyFolder
from tests.study.example import example_row


@pytest.fixture
def folder(shards, tmp_path):
    """A copy of the simulated files that a test may damage."""
    return shutil.copytree(shards.parent / "hdf5", tmp_path / "hdf5")


def run(capsys, *arguments):
    """Exit status, text and JSON of an inspection."""
    out = arguments[0].parent / "inspect.json"
    status = main(["inspect", *map(str, arguments), "--json", str(out)])
    return status, capsys.readouterr().out, json.loads(out.read_text())


def test_a_file(capsys, folder):
    file = folder / "val" / "dataset.h5"
    status, text, data = run(capsys, file)
    assert (status, data["rows"], data["problems"]) == (0, 64, [])
    assert "no problems found" in text
    with h5py.File(file, "a") as raw:
        raw[FLUX_ARRAY][3] = np.nan
    status, text, data = run(capsys, file)
    assert status == 1
    assert text.count("PROBLEM") == len(data["problems"]) == 1


def test_a_folder_of_splits_and_several_paths_are_seen_together(capsys, folder):
    status, text, data = run(capsys, folder)
    assert (status, [file["rows"] for file in data["files"]], data["problems"]) == (0, [96, 300, 64], [])
    assert "3 files together" in text
    shutil.copy(folder / "val" / "dataset.h5", folder / "test" / "dataset.h5")
    assert run(capsys, folder / "val", folder / "train_0" / "dataset.h5")[0] == 0
    status, text, data = run(capsys, folder / "val", folder / "test" / "dataset.h5")
    assert status == 1
    assert "(row 0 is row 0 there)" in data["problems"][0]
    assert data["problems"][0] in text


def test_a_shard_set_and_files_beside_it(capsys, shards, folder, tmp_path):
    copy = shutil.copytree(shards, tmp_path / "shards")
    status, text, data = run(capsys, copy, folder / "val")
    assert status == 0
    assert [found["rows"] for found in data["inspected"] if "rows" in found] == [64]
    status, text, data = run(capsys, copy)
    assert (status, data["rows_per_shard"], "wave" in data) == (0, 128, False)
    assert [shard["rows"] for shard in data["splits"]["train"]] == [128, 128, 44]
    (copy / "train" / "part-00001.parquet").unlink()
    status, text, data = run(capsys, copy)
    assert status == 1
    assert "part-00001.parquet: this shard cannot be read (no such file)" in data["problems"][0]
    assert f"PROBLEM: {data['problems'][0]}" in text


@pytest.fixture
def store(tmp_path):
    """A store with one study: the trial of the best test error is not that of the best validation error."""
    study = StudyFolder(Store(str(tmp_path / "store")), "mine")
    study.write_declaration(b"{}")
    for trial, val, test in (("a-t00", 0.2, 0.3), ("a-t01", 0.3, 0.1)):
        row = example_row(study="mine", cell="a", trial=trial, val_mae_dex=val, test_mae_dex=test)
        study.trial(trial).write_row(row)
    return tmp_path / "store"


def test_the_test_error_shown_is_that_of_the_trial_that_validation_chose(capsys, store):
    status, text, data = run(capsys, store)
    assert status == 0
    assert data["mine"]["best"] == {"trial": "a-t00", "val_mae_dex": 0.2, "test_mae_dex": 0.3}
    assert "best trial a-t00: val MAE 0.2000 dex, test MAE 0.3000 dex" in text
    assert run(capsys, store / "mine")[2] == data


def test_rows_of_several_evaluation_sets_are_a_problem(capsys, store):
    row = example_row(study="mine", cell="c", trial="c-t00", eval_pin="another")
    StudyFolder(Store(str(store)), "mine").trial("c-t00").write_row(row)
    status, text, data = run(capsys, store)
    assert status == 1
    assert data["mine"]["problems"][0] in text


def test_a_study_is_found_by_its_uri(store):
    found = inspect([f"file://{store}/mine"])
    assert found.data["mine"]["rows"] == 2


def test_options_of_a_uri_stay_at_its_end():
    from scaling.inspect import _parent

    parent, name = _parent(Store("s3://bucket/results/mine?region=eu-west-1"))
    assert (parent.uri, name) == ("s3://bucket/results?region=eu-west-1", "mine")
