"""Model files and spectra that are wrong in one place: one line and exit status 2, before anything is computed or written."""

import json
import os

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from scaling.data.hdf5.reader import FLUX_ARRAY
from scaling.inference.predict import NOISY
from tests.data.hdf5.hostile import to_fifo
from tests.inference.models import mistake, own_spectra, run
from tests.inference.test_lightning import original_weights, save


@pytest.fixture
def altered(one, tmp_path):
    """Writes the trained model with one thing changed: a tensor, or a value of its config or of what it says of itself."""

    def write(tensors=None, config=None, about=None):
        with safe_open(one[1], framework="pt") as file:
            metadata = file.metadata()
            kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        for part, changes in (("config", config), ("about", about)):
            if isinstance(changes, dict):
                changes = json.dumps(json.loads(metadata[part]) | changes)
            metadata[part] = metadata[part] if changes is None else changes
        path = tmp_path / "model.safetensors"
        save_file(kept | (tensors or {}), path, metadata)
        return path

    return write


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"config": {"depth": 10**9}}, "and its config is that of"),
        ({"config": {"depth": "1"}}, "depth"),
        ({"config": {"width": 8.5}}, "width"),
        ({"config": {"color": 3}}, "color"),
        ({"config": "[]"}, "expected a JSON object"),
        ({"config": "{"}, "cannot be read as JSON"),
        ({"about": "[1]"}, "expected a JSON object"),
        ({"about": {"rules": 3}}, "another version"),
        ({"about": {"label_mean": "three"}}, "another version"),
        ({"about": {"label_std": [0.0]}}, "label_std has values that are not above 0"),
        ({"about": {"label_offset": [1.0, 2.0]}}, "label_offset float64 of shape (2,)"),
        ({"about": {"label_scale": [1.0, 2.0]}}, "label_scale float64 of shape (2,), expected floats of shape (1,)"),
        ({"about": {"num_spectra": "many"}}, "num_spectra = 'many'"),
        ({"tensors": {"statistics.flux_scale": torch.zeros(1024)}}, "flux_scale has values that are not above 0"),
        ({"tensors": {"statistics.flux_scale": torch.ones(7)}}, "flux_scale float32 of shape (7,)"),
        (
            {"tensors": {"statistics.flux_offset": torch.full((1024,), torch.nan)}},
            "flux_offset has values that are not finite",
        ),
        ({"tensors": {"statistics.wave": torch.full((1024,), torch.nan)}}, "wave has values that are not finite"),
        ({"tensors": {"statistics.wave": torch.ones(1024, dtype=torch.float64)}}, "wave does not rise"),
        ({"tensors": {"model.head.bias": torch.tensor([torch.inf])}}, "head.bias has values that are not finite"),
        ({"tensors": {"model.head.bias": torch.zeros(3)}}, "weights, and its config is that of"),
    ],
)
def test_a_wrong_model_file_is_one_line(altered, shards, capsys, tmp_path, changes, words):
    path, out = altered(**changes), tmp_path / "out.parquet"
    spectra = shards.parent / "hdf5" / "test" / "dataset.h5"
    for arguments in (("evaluate", path, shards), ("predict", path, spectra, out)):
        line = mistake(capsys, *arguments)
        assert words in line
        assert str(path) in line
    assert not out.exists()


def test_answers_that_are_not_finite_are_no_score(altered, shards, capsys, tmp_path):
    path = altered({"model.head.weight": torch.full((1, 8), 3e38), "model.norm.bias": torch.full((8,), 9.0)})
    spectra, out = shards.parent / "hdf5" / "test" / "dataset.h5", tmp_path / "out.parquet"
    assert "not finite: no score" in mistake(capsys, "evaluate", path, shards)
    assert "answer for row 0" in mistake(capsys, "predict", path, spectra, out)
    assert not out.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "best.ckpt"])
def test_a_pipe_is_no_model(shards, capsys, tmp_path, name):
    os.mkfifo(tmp_path / name)
    assert "no such file" in mistake(capsys, "evaluate", tmp_path / name, shards)


def test_a_checkpoint_of_numbered_or_damaged_weights_is_one_line(shards, capsys, tmp_path):
    torch.save({"state_dict": {1: torch.ones(1)}}, tmp_path / "numbered.ckpt")
    assert "no 'state_dict' of tensors" in mistake(capsys, "evaluate", tmp_path / "numbered.ckpt", shards)
    weights = original_weights(1024 // 16, width=32, mlp=64, depth=1)
    weights["model.regressor.bias"][0] = torch.nan
    path = save(tmp_path / "nan.ckpt", weights)
    assert "model.regressor.bias: values that are not finite" in mistake(capsys, "evaluate", path, shards)


@pytest.mark.parametrize("seed", [-1, 2**63, 2**70])
def test_a_seed_of_more_than_63_bits_is_refused(one, shards, capsys, tmp_path, seed):
    spectra = shards.parent / "hdf5" / "test" / "dataset.h5"
    line = mistake(capsys, "predict", one[1], spectra, tmp_path / "out.parquet", f"--noise-seed={seed}")
    assert f"--noise-seed {seed}: must be in 0" in line


def test_texts_for_spectra_or_labels_are_one_line(one, shards, capsys, tmp_path):
    path, out = tmp_path / "own.h5", tmp_path / "out.parquet"
    with own_spectra(shards, path) as file:
        shape = file["dataset/arrays/flux/value"].shape
        file["dataset/arrays/noisy/value"] = np.full(shape, b"x")
    assert "no dataset/arrays/noisy/value of numbers" in mistake(
        capsys, "predict", one[1], path, out, "--array", "noisy"
    )
    with own_spectra(shards, path):
        pass
    labels = pd.read_hdf(path, "dataset/params").assign(log_g="three")
    labels.to_hdf(path, key="dataset/params", format="table")
    assert "log_g" in mistake(capsys, "predict", one[1], path, out)
    assert not out.exists()


def virtual(path):
    with h5py.File(path, "r+") as file:
        layout = h5py.VirtualLayout(file[FLUX_ARRAY].shape, "f8")
        layout[:] = h5py.VirtualSource(str(path.with_name("absent.h5")), "x", layout.shape)
        file.create_virtual_dataset(NOISY, layout)


def damaged(path):
    with h5py.File(path, "r+") as file:
        file.create_dataset(NOISY, data=file[FLUX_ARRAY][:], chunks=(32, 1024), fletcher32=True)
        chunk = file[NOISY].id.get_chunk_info(1)
    with path.open("r+b") as raw:
        raw.seek(chunk.byte_offset + 100)
        raw.write(b"\xff\x00\xff\x00")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: to_fifo(path, NOISY), f"{NOISY} is a link to another file"),
        (virtual, f"the values of {NOISY} are in other files"),
        (damaged, f"{NOISY} of rows 0 to 95 cannot be read"),
    ],
    ids=["behind a FIFO", "virtual", "damaged"],
)
def test_noisy_spectra_that_the_file_does_not_hold_are_one_line(one, shards, capsys, tmp_path, change, words):
    path, out = tmp_path / "own.h5", tmp_path / "out.parquet"
    with own_spectra(shards, path):
        pass
    change(path)
    assert words in mistake(capsys, "predict", one[1], path, out)
    assert not out.exists()
    run("predict", one[1], path, out, "--array", "flux")
