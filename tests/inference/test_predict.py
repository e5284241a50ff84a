"""`scaling predict`: its errors are those of the trial's row."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from scaling.data.hdf5.reader import open_spectra
from scaling.inference import predict
from tests.inference.models import RULES, mistake, own_spectra, predicted, run, trained


def test_predictions_with_the_evaluation_noise_have_the_error_of_the_row(shards, one, tmp_path, capsys):
    _, model, row = one
    spectra = shards.parent / "hdf5" / "test" / "dataset.h5"
    run("predict", model, spectra, tmp_path / "out.parquet", "--noise-seed", 42)
    assert "array flux with noise of seed 42" in capsys.readouterr().out
    table = predicted(tmp_path / "out.parquet")
    assert list(table.columns) == ["row", "log_g_predicted", "log_g"]
    assert list(table["row"]) == list(range(96))
    with open_spectra(spectra) as file:
        assert list(table["log_g"]) == list(file.params["log_g"])
    assert (table["log_g_predicted"] - table["log_g"]).abs().mean() == pytest.approx(row.test_mae_dex, rel=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]


def test_how_the_rows_are_cut_into_pieces_changes_nothing(shards, one, tmp_path, monkeypatch):
    _, model, _ = one
    spectra = shards.parent / "hdf5" / "test" / "dataset.h5"
    run("predict", model, spectra, tmp_path / "whole.parquet", "--noise-seed", 3)
    monkeypatch.setattr(predict, "TABLE_ROWS", 64)
    run("predict", model, spectra, tmp_path / "pieces.parquet", "--noise-seed", 3)
    assert pq.ParquetFile(tmp_path / "pieces.parquet").num_row_groups == 2
    whole, pieces = predicted(tmp_path / "whole.parquet"), predicted(tmp_path / "pieces.parquet")
    np.testing.assert_allclose(whole, pieces, rtol=1e-6)


def test_the_noisy_array_is_used_where_there_is_one(shards, one, tmp_path, capsys):
    _, model, _ = one
    path = tmp_path / "noisy.h5"
    with own_spectra(shards, path) as file:
        flux, error = (file[f"dataset/arrays/{name}/value"][:] for name in ("flux", "error"))
        noise = torch.randn(flux.shape, generator=torch.Generator().manual_seed(42)).numpy()
        file["dataset/arrays/noisy/value"] = np.maximum(flux, 0) + noise * error
    run("predict", model, path, tmp_path / "noisy.parquet")
    assert "from the array noisy" in capsys.readouterr().out
    run("predict", model, path, tmp_path / "drawn.parquet", "--noise-seed", 42)
    run("predict", model, path, tmp_path / "flux.parquet", "--array", "flux")
    noisy, drawn, flux = (
        predicted(tmp_path / f"{name}.parquet")["log_g_predicted"] for name in ("noisy", "drawn", "flux")
    )
    np.testing.assert_allclose(noisy, drawn, atol=1e-5)
    assert (noisy - flux).abs().max() > 1e-3
    assert "--noise-seed 1" in mistake(
        capsys, "predict", model, path, tmp_path / "x", "--array", "noisy", "--noise-seed", 1
    )


def test_flux_is_clipped_and_what_cannot_be_used_has_no_prediction(shards, one, tmp_path, capsys):
    _, model, _ = one
    with own_spectra(shards, tmp_path / "own.h5") as file:
        flux = file["dataset/arrays/flux/value"]
        flux[0, 5:9] = -3.0
        flux[1, 5:9] = 0.0
        flux[1, :5], flux[1, 9:] = flux[0, :5], flux[0, 9:]
        flux[2] = 0.0
        flux[7, 100] = np.nan
    run("predict", model, tmp_path / "own.h5", tmp_path / "out.parquet")
    answers = predicted(tmp_path / "out.parquet")["log_g_predicted"]
    assert answers[0] == answers[1]
    assert list(np.flatnonzero(answers.isna())) == [2, 7]
    assert "2 spectra cannot be used, first in row 2" in capsys.readouterr().err


def test_all_labels_and_probabilities_are_predicted(shards, cache_root, tmp_path):
    spectra = shards.parent / "hdf5" / "test" / "dataset.h5"
    _, model, row = trained(shards, cache_root, tmp_path / "three", RULES["three labels"])
    run("predict", model, spectra, tmp_path / "three.parquet", "--noise-seed", 42)
    table = predicted(tmp_path / "three.parquet")
    assert list(table.columns) == [
        "row",
        "log_g_predicted",
        "T_eff_predicted",
        "M_H_predicted",
        "log_g",
        "T_eff",
        "M_H",
    ]
    error = (table["T_eff_predicted"] - table["T_eff"]).abs().mean()
    assert error == pytest.approx(json.loads(row.other_labels)["T_eff"]["test_mae"], rel=1e-5)
    _, model, row = trained(shards, cache_root, tmp_path / "classes", RULES["classes"])
    run("predict", model, spectra, tmp_path / "classes.parquet", "--noise-seed", 42)
    table = predicted(tmp_path / "classes.parquet")
    assert list(table.columns) == ["row", "log_g_probability", "log_g"]
    assert table["log_g_probability"].between(0, 1).all()
    wrong = (table["log_g_probability"] > 0.5) != (table["log_g"] > 2.5)
    assert wrong.mean() == pytest.approx(row.test_error_rate)


def test_an_output_is_never_an_input_or_another_kind_of_file(shards, one, tmp_path, capsys):
    _, model, _ = one
    model = Path(shutil.copy(model, tmp_path / "model.safetensors"))
    for name in ("a.h5", "b.h5"):
        shutil.copy(shards.parent / "hdf5" / "test" / "dataset.h5", tmp_path / name)
    (tmp_path / "link.parquet").symlink_to(tmp_path / "a.h5")
    before = {path: path.read_bytes() for path in (model, tmp_path / "a.h5", tmp_path / "b.h5")}
    for out, words in (
        ("a.h5", "is an input"),
        ("b.h5", "did not write"),  # predict MODEL *.h5
        ("model.safetensors", "is an input"),
        ("link.parquet", "not a regular file"),
        ("absent/out.parquet", "there is no folder"),
    ):
        assert words in mistake(capsys, "predict", model, tmp_path / "a.h5", tmp_path / out)
    assert before == {path: path.read_bytes() for path in before}
    for _ in range(2):  # an earlier answer is replaced
        run("predict", model, tmp_path / "a.h5", tmp_path / "out.parquet")


def test_a_full_disk_is_one_line(shards, one, small_disk, capsys):
    disk = small_disk(16_384)
    (disk / "filler").write_bytes(bytes(16_384))
    error = mistake(capsys, "predict", one[1], shards.parent / "hdf5" / "test" / "dataset.h5", disk / "out.parquet")
    assert "out.parquet: the disk is full" in error
    assert os.listdir(disk) == ["filler"]


@pytest.mark.slow
def test_a_killed_prediction_leaves_nothing(shards, one, tmp_path):
    try:
        os.close(os.open(tmp_path, os.O_TMPFILE | os.O_RDWR))
    except OSError:
        pytest.skip("this file system has no nameless files")
    code = """
        import os, signal, sys
        from scaling.__main__ import main
        from scaling.inference import predict

        answers, predict.TABLE_ROWS = predict._answers, 64
        calls = []

        def die(*arguments):
            calls.append(None)
            if len(calls) > 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return answers(*arguments)

        predict._answers = die
        main(["predict", *sys.argv[1:]])
    """
    spectra = shards.parent / "hdf5" / "test" / "dataset.h5"
    words = [sys.executable, "-c", textwrap.dedent(code), one[1], spectra, tmp_path / "out.parquet"]
    killed = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert os.listdir(tmp_path) == []
