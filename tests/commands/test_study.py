"""Commands on a study and its store: a user's mistake is one clear line on stderr and exit status 2."""

import dataclasses
import json
import os
import shutil

import filelock
import pytest

from scaling.__main__ import main
from scaling.results import read_table
from scaling.study.store import Store, StudyFolder
from tests.commands.refusals import mistake
from tests.study.example import example_row


def test_plan_prints_the_cost_and_writes_json(capsys, tmp_path):
    assert main(["plan", "experiments.bosz_1m", "--json", str(tmp_path / "plan.json")]) == 0
    text = capsys.readouterr().out
    assert "4,809,729" in text
    assert "device-hours" in text
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["expected_trials"] < plan["trials"] == 336
    assert {cell["num_params"] for cell in plan["cells"]} >= {4_809_729}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("(64, 128)", "(64, 1000)"), ["1000 spectra asked for", "300 in train"]),
        (("num_pixels=1024", "num_pixels=2048"), ["num_pixels = 2048", "1024 pixels"]),
        (('label="log_g"', 'label="logg"'), ["logg", "log_g"]),
        (('label="log_g"', 'label="Fe_H"'), ["Fe_H", "NaN in 300"]),
        (("(64, 128)", "(128, 64)"), ["num_spectra = (128, 64)", "rising"]),
        (("samples=256", "samples=0"), ["Budget.samples = 0: must be greater"]),
        (("widths=(4, 8)", "widths=(4, 100)"), ["num_heads = 3", "width = 100"]),
        (("patch_size=128", "patch_size=100"), ["patch_size = 100"]),
        (('name="mine"', 'name="My Study"'), ["Study.name"]),
        (('name="mine"', f'name="{"x" * 300}"'), ["Study.name", "at most 100 characters"]),
        (("STUDY =", "MINE ="), ["STUDY"]),
        (('question="?"', 'question="?'), ["mine.py"]),
        (('train=(Path("a.h5"),)', 'train=(Path("a.h5"), Path("z.h5"))'), ["2 files declared", "1 files"]),
        (('test=Path("c.h5")', 'test=Path("c.h5"), order="shuffled"'), ["order = 'shuffled'", "'source'"]),
    ],
)
def test_a_study_that_cannot_run_is_refused_before_ray_starts(capsys, tmp_path, study_file, change, words):
    error = mistake(capsys, "run", study_file(change), "--store", tmp_path / "store", "--cache", tmp_path / "cache")
    for word in words:
        assert word in error


@pytest.mark.ray
def test_missing_sources_name_the_first_missing_file(capsys, tmp_path, study_file, ray_cluster):
    study = study_file(
        ("shards=Path(", "shards=Path('nowhere') / Path("), ("'nowhere') / Path('/", "'nowhere') / Path('")
    )
    error = mistake(capsys, "run", study, "--store", tmp_path / "store", "--cache", tmp_path / "cache")
    assert "a.h5" in error


@pytest.mark.ray
def test_a_study_that_does_not_fit_the_cluster_names_the_cell(capsys, tmp_path, study_file, ray_cluster):
    study = study_file(("search=Search(trials=1)", "search=Search(trials=1), placements=(Placement(gpus=4),)"))
    error = mistake(capsys, "run", study, "--store", tmp_path / "store", "--cache", tmp_path / "cache")
    assert "needs 1 x 1 CPU and 4 GPU" in error
    assert "w0004-d00000064-s42" in error


def test_a_changed_declaration_is_not_mixed_with_old_rows(capsys, tmp_path, study_file):
    row = example_row(
        study="mine", cell="w0004-d00000064-s42", trial="w0004-d00000064-s42-t00", fingerprint="of another recipe"
    )
    StudyFolder(Store(str(tmp_path / "store")), "mine").trial(row.trial).write_row(row)
    error = mistake(capsys, "run", study_file(), "--store", tmp_path / "store", "--cache", tmp_path / "cache")
    assert row.trial in error
    assert "another declaration" in error


def test_a_refused_run_keeps_why_trials_failed(capsys, tmp_path, study_file):
    cell = "w0004-d00000064-s42"
    trial = StudyFolder(Store(str(tmp_path / "store")), "mine").trial(f"{cell}-t00")
    of_another = {"fingerprint": "of another recipe", "status": "failed", "error": "its shard is damaged"}
    trial.write_row(example_row(study="mine", cell=cell, trial=f"{cell}-t00", **of_another))
    places = ("--store", tmp_path / "store", "--cache", tmp_path / "cache")
    assert "another declaration" in mistake(capsys, "run", study_file(), *places, "--retry-failed")
    assert trial.read_row().error == "its shard is damaged"


def test_what_lies_in_a_store_is_used_or_named_in_one_line(capsys, tmp_path, study_file):
    folder = StudyFolder(Store(str(tmp_path / "store")), "mine")
    cell = "w0004-d00000064-s42"
    row = example_row(study="mine", cell=cell, trial=f"{cell}-t00", num_spectra=64)
    edited = row.to_json().replace('"test_mae_dex": 0.5', '"test_mae_dex": 0.001').encode()
    damages = [
        b"\xff\x00",
        b"[]",
        b"[" * 10**5,
        edited,
        dataclasses.replace(row, trial=f"{cell}-t01").to_json().encode(),
    ]
    study, store, cache = study_file(), tmp_path / "store", tmp_path / "cache"
    commands = [[name, study, "--store", store] for name in ("status", "collect", "report")]
    for content in damages:
        folder.store.write(f"mine/trials/{row.trial}/row.json", content)
        folder.write_declaration(b"garbage: nothing reads it")
        run = ["run", study, "--store", store, "--cache", cache] if content == edited else commands[0]
        for command in (*commands, run, ["inspect", store / "mine"]):
            assert f"{row.trial}/row.json: " in mistake(capsys, *command)
    folder.trial(row.trial).write_row(row)
    for content in (b"\xff\x00", b"[]", b'{"label": 5}'):
        folder.store.write("mine/anchors/x.json", content)
        assert "mine/anchors/x.json: " in mistake(capsys, *commands[-1])
    folder.store.delete("mine/anchors/x.json")
    folder.store.write(f"mine/trials/{cell}-t01/progress.csv", b"\xff\x00")
    for command in (commands[0], ["inspect", store / "mine"]):
        assert main([str(word) for word in command]) == 0
        assert "its progress.csv cannot be read" in capsys.readouterr().out


def test_a_study_that_has_grown_holds_out_its_new_edge(capsys, tmp_path, study_file):
    folder = StudyFolder(Store(str(tmp_path / "store")), "mine")
    for spectra in (64, 128):
        cell = f"w0004-d{spectra:08d}-s42"
        folder.trial(f"{cell}-t00").write_row(
            example_row(study="mine", cell=cell, trial=f"{cell}-t00", num_spectra=spectra, held_out=spectra == 128)
        )
    study = study_file(("(64, 128)", "(64, 128, 256)"))
    assert main(["collect", str(study), "--store", str(tmp_path / "store")]) == 0
    assert "2 rows" in capsys.readouterr().out
    assert not read_table(tmp_path / "store" / folder.table_path)["held_out"].any()


def test_a_second_run_of_the_same_study_is_refused(capsys, tmp_path, study_file):
    (tmp_path / "store" / "mine").mkdir(parents=True)
    with filelock.FileLock(tmp_path / "store" / "mine" / ".running"):
        error = mistake(capsys, "run", study_file(), "--store", tmp_path / "store", "--cache", tmp_path / "cache")
    assert "another `scaling run`" in error


def test_a_missing_shard_is_found_before_training(capsys, tmp_path, study_file, shards):
    shutil.copytree(shards, tmp_path / "damaged")
    (tmp_path / "damaged" / "train" / "part-00001.parquet").unlink()
    study = study_file((str(shards), str(tmp_path / "damaged")))
    error = mistake(capsys, "run", study, "--store", tmp_path / "store", "--cache", tmp_path / "cache")
    assert "part-00001.parquet" in error


@pytest.mark.parametrize("study", ["experiments.nothing", "nothing.py"])
def test_an_unknown_study_is_named(capsys, tmp_path, study):
    assert study in mistake(capsys, "run", study, "--store", tmp_path)


def test_an_unwritable_store_is_named(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in mistake(capsys, "run", "experiments.smoke", "--store", tmp_path / "file" / "store")
    assert "nosuch" in mistake(capsys, "run", "experiments.smoke", "--store", "nosuch://bucket")


def test_a_report_without_rows_is_refused(capsys, tmp_path):
    assert "no rows yet" in mistake(capsys, "report", "experiments.smoke", "--store", tmp_path)


@pytest.mark.parametrize(("address", "words"), [("nonsense", "HOST:PORT"), ("127.0.0.1:{port}", "nothing answers")])
def test_an_address_without_a_cluster_is_refused_at_once(capsys, tmp_path, study_file, free_port, address, words):
    address = address.format(port=free_port)
    error = mistake(capsys, "run", study_file(), "--store", tmp_path, "--cache", tmp_path, "--address", address)
    assert address in error
    assert words in error


def test_source_files_of_another_size_are_refused(capsys, tmp_path, study_file):
    (tmp_path / "a.h5").write_bytes(b"other")
    study = study_file(('Path("a.h5")', f'Path("{tmp_path}/a.h5")'))
    error = mistake(capsys, "run", study, "--store", tmp_path / "store", "--cache", tmp_path / "cache")
    assert "a.h5 declared" in error
    assert "was made from" in error


@pytest.mark.parametrize("command", ["status", "collect", "report"])
def test_a_mistyped_store_is_not_made(capsys, tmp_path, study_file, command):
    error = mistake(capsys, command, study_file(), "--store", tmp_path / "typo")
    assert str(tmp_path / "typo") in error
    assert not (tmp_path / "typo").exists()
    (tmp_path / "empty").mkdir()
    if command != "status":
        assert "no rows yet" in mistake(capsys, command, study_file(), "--store", tmp_path / "empty")
        assert os.listdir(tmp_path / "empty") == []


def test_collect_and_report_of_a_remote_store_make_nothing_either(capsys, study_file, s3_server):
    for command in ("collect", "report"):
        assert "no rows yet" in mistake(capsys, command, study_file(), "--store", s3_server("typo"))
    assert Store(s3_server("typo")).folders() == []
