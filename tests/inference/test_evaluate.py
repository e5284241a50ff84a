"""`scaling evaluate` and `export`: a model's numbers are those of its trial's row, wherever they are made."""

import contextlib
import dataclasses
import json

import numpy as np
import pytest
import torch

from scaling.data.hdf5.reader import open_spectra
from scaling.data.shards.manifest import Manifest
from scaling.inference.evaluate import evaluate
from scaling.inference.lightning import read_lightning
from scaling.inference.trained import open_model
from scaling.model.checkpoint import load_model, model_bytes
from tests.inference.models import RULES, mistake, own_spectra, predicted, run, trained
from tests.inference.test_lightning import PIXELS, original_weights, save


@pytest.mark.parametrize("case", RULES)
def test_the_numbers_are_those_of_the_row(shards, cache_root, tmp_path, capsys, case):
    precision = "bf16" if case.startswith("bf16") else "fp32"
    _, model, row = trained(shards, cache_root, tmp_path / "store", RULES[case], precision)
    run("evaluate", model, shards, "--cache", cache_root, "--json", tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    expected = json.loads(row.to_json())
    for name in ("test_by_snr", "test_by_label", "other_labels"):
        expected[name] = json.loads(expected[name])
    shared = found.keys() & expected.keys() - {"other_labels"}
    assert {
        "test_mae_dex",
        "test_mae_sem_z",
        "test_r2",
        "test_p90_dex",
        "test_by_snr",
        "num_test",
        "eval_pin",
    } <= shared
    assert {name: found[name] for name in shared} == {name: expected[name] for name in shared}
    for label, scores in found["other_labels"].items():
        assert scores == {
            name: expected["other_labels"][label][name] for name in scores if name in expected["other_labels"][label]
        }
    assert list(found["other_labels"]) == list(RULES[case].other_labels)
    run("evaluate", model, shards, "--cache", cache_root, "--split", "val", "--json", tmp_path / "val.json")
    val = json.loads((tmp_path / "val.json").read_text())
    score = RULES[case].score
    assert val[f"val_{score}"] == expected[f"val_{score}"]
    printed = capsys.readouterr().out
    assert (f"MAE {row.test_mae_dex:.4f}" if score == "mae_dex" else f"error rate {row.test_error_rate:.4f}") in printed


def test_an_evaluation_counts_the_shards_it_decodes_and_the_spectra_it_scores(shards, one, tmp_path):
    seen = {}

    @contextlib.contextmanager
    def counting(what):
        seen[what] = []
        yield lambda *count: seen[what].append(count)

    model, cpu = open_model(one[1]), torch.device("cpu")
    rules = dataclasses.replace(model.rules, eval_draws=2)
    evaluate(model, shards, "test", rules, device=cpu, cache_root=tmp_path / "cache", counting=counting)
    assert seen == {"shards into the node's cache": [(1, 1)], "spectra scored": [(96, 192), (192, 192)]}
    evaluate(model, shards, "test", rules, device=cpu, cache_root=tmp_path / "cache", counting=counting)
    assert seen["shards into the node's cache"] == []


def test_other_wavelengths_are_refused(shards, one, tmp_path, capsys):
    _, model, _ = one
    with own_spectra(shards, tmp_path / "own.h5") as file:
        file["spectrumdataset/wave"][:] += 0.5
    error = mistake(capsys, "predict", model, tmp_path / "own.h5", tmp_path / "out.parquet")
    assert "up to 0.5 Å" in error
    assert not (tmp_path / "out.parquet").exists()
    network, extra, about = load_model(model)
    other = tmp_path / "other.safetensors"
    other.write_bytes(model_bytes(network.config, network.state_dict(), extra | {"wave": extra["wave"] + 1}, about))
    assert "up to 1 Å" in mistake(capsys, "evaluate", other, shards)


def test_an_original_checkpoint_is_scored_with_the_shards_own_label_statistics(
    shards, cache_root, original, tmp_path, capsys
):
    run("evaluate", original, shards, "--cache", cache_root, "--json", tmp_path / "found.json")
    printed = capsys.readouterr().out
    assert "only the number of pixels was compared" in printed
    assert "of the training split" in printed
    found = json.loads((tmp_path / "found.json").read_text())
    # By hand: noise of seed 42 on the clipped flux, no standardisation, the label z-scored.
    with open_spectra(shards.parent / "hdf5" / "test" / "dataset.h5") as file:
        flux, error = map(torch.from_numpy, file.read(0, 96))
        truth = file.params["log_g"].to_numpy()
    noise = torch.randn(flux.shape, generator=torch.Generator().manual_seed(42))
    label = Manifest.load(shards).labels["log_g"]
    model, _ = read_lightning(original)
    with torch.no_grad():
        answers = model(flux.clamp(min=0) + noise * error)[:, 0].double().numpy() * label.std + label.mean
    assert found["test_mae_dex"] == pytest.approx(np.abs(answers - truth).mean(), rel=1e-5)
    assert found["test_mae_z"] == pytest.approx(found["test_mae_dex"] / label.std)
    assert not found["wave_checked"]


def test_an_exported_checkpoint_says_all_it_takes(shards, cache_root, original, tmp_path, capsys):
    out = tmp_path / "original.safetensors"
    run("export", original, out, "--shards", shards, "--num-spectra", 1_000_000)
    assert "504003" in capsys.readouterr().out
    for model, name in ((original, "a.json"), (out, "b.json")):
        run("evaluate", model, shards, "--cache", cache_root, "--json", tmp_path / name)
    first, again = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    scores = {name for name in first if name.startswith("test_")}
    assert {name: first[name] for name in scores} == {name: again[name] for name in scores}
    assert again["wave_checked"]
    assert again["num_spectra"] == 1_000_000
    run("export", original, out, "--shards", shards, "--num-spectra", 1_000_000)  # in place of an earlier export
    (tmp_path / "other.safetensors").write_text("{}")
    assert "did not write" in mistake(capsys, "export", original, tmp_path / "other.safetensors", "--shards", shards)
    run("inspect", out, "--json", tmp_path / "inspect.json")
    inspected = json.loads((tmp_path / "inspect.json").read_text())
    assert inspected["config"]["num_heads"] == 1
    assert inspected["about"]["epoch"] == 129
    run("export", original, tmp_path / "numbers.safetensors", "--label-mean", 3, "--label-std", 1.2, "--heads", 4)
    model = open_model(tmp_path / "numbers.safetensors")
    assert (model.model.config.num_heads, model.standardisation.label_scale[0], model.wave) == (4, 1.2, None)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["predict", "{ckpt}", "{h5}", "out.parquet"], "--label-mean"),
        (["export", "{ckpt}", "out.safetensors", "--label-mean", 3], "give both"),
        (["export", "{ckpt}", "out.safetensors", "--label-mean", 3, "--label-std", 0], "above 0"),
        (["export", "{ckpt}", "out.pt", "--label-mean", 3, "--label-std", 1], "ends in .safetensors"),
        (["export", "{ckpt}", "out.safetensors", "--shards", "{shards}", "--label", "logg"], "no label 'logg'"),
        (["export", "{ckpt}", "out.safetensors", "--shards", "{shards}", "--stride", "8"], "takes 520 pixels"),
        (["export", "{model}", "out.safetensors"], "is a model file already"),
        (["predict", "{model}", "{h5}", "out.parquet", "--heads", 2], "leave out their flags"),
        (["predict", "{model}", "{h5}", "out.parquet", "--array", "noisy"], "use --array flux"),
        (["predict", "{model}", "missing.h5", "out.parquet"], "missing.h5"),
        (["predict", "missing.safetensors", "{h5}", "out.parquet"], "missing.safetensors"),
        (["evaluate", "missing.ckpt", "{shards}"], "missing.ckpt"),
        (["evaluate", "{model}", "{h5}"], "manifest.json"),
        (["evaluate", "{ckpt}", "{shards}", "--label", "logg"], "no label 'logg'"),
        (["evaluate", "{model}", "{shards}", "--noise-level", -1], "noise_level"),
        (["evaluate", "{model}", "{shards}", "--anchor", "experiments.demo"], "go together"),
        (["evaluate", "{model}", "{shards}", "--num-spectra", 5], "--anchor"),
    ],
)
def test_mistakes_are_one_line(shards, one, original, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    places = {"ckpt": original, "model": one[1], "shards": shards, "h5": shards.parent / "hdf5" / "test" / "dataset.h5"}
    assert words in mistake(capsys, *(str(argument).format(**places) for argument in arguments))
    assert not list(tmp_path.iterdir())


def test_a_model_of_other_pixels_is_refused(shards, tmp_path, capsys):
    small = save(tmp_path / "small.ckpt", original_weights())
    assert f"takes {PIXELS}" in mistake(capsys, "evaluate", small, shards)


def test_a_model_file_of_another_version_is_named(one, tmp_path, capsys):
    network, extra, about = load_model(one[1])
    del about["rules"]
    (tmp_path / "old.safetensors").write_bytes(model_bytes(network.config, network.state_dict(), extra, about))
    assert "another version" in mistake(capsys, "inspect", tmp_path / "old.safetensors")


@pytest.fixture
def study_file(shards, tmp_path):
    """The study of the fixture `one` as a module that the command line loads."""
    path = tmp_path / "example.py"
    path.write_text(
        f"from tests.inference.models import RULES, study_of\nSTUDY = study_of({str(shards)!r}, RULES['one label'])\n"
    )
    return path


def test_an_anchor_is_kept_and_shown_in_the_report(shards, cache_root, one, original, study_file, tmp_path, capsys):
    _, model, row = one
    store = model.parents[3]
    anchor = ("--anchor", study_file, "--store", store, "--cache", cache_root)
    run("evaluate", original, shards, *anchor, "--name", "original-1M", "--num-spectra", 1_000_000)
    kept = json.loads((store / "example" / "anchors" / "original-1M.json").read_text())
    assert (kept["num_spectra"], kept["eval_pin"], kept["num_test"]) == (1_000_000, row.eval_pin, 96)
    run("evaluate", model, shards, *anchor, "--name", "itself")
    itself = json.loads((store / "example" / "anchors" / "itself.json").read_text())
    assert {name: itself[name] for name in ("num_params", "num_spectra", "test_mae_dex", "test_mae_sem_dex")} == {
        "num_params": row.num_params,
        "num_spectra": 256,
        "test_mae_dex": row.test_mae_dex,
        "test_mae_sem_dex": row.test_mae_sem_dex,
    }
    run("report", study_file, "--store", store)
    page = (store / "example" / "report" / "index.html").read_text()
    assert (
        f"original-1M (N = {kept['num_params']:,}, D = 1,000,000) has a test MAE of {kept['test_mae_dex']:.3f} ±"
        in page
    )
    capsys.readouterr()
    for arguments, words in (
        (("--noise-level", 2, "--num-spectra", 5), "not comparable"),
        (("--draws", 2, "--num-spectra", 5), "not comparable"),
        (("--split", "val"), "on the test split"),
        (("--name", "../x"), "it names a file"),
        ((), "give --num-spectra"),
    ):
        assert words in mistake(capsys, "evaluate", original, shards, *anchor, *arguments)
    assert "was trained on 256" in mistake(capsys, "evaluate", model, shards, *anchor, "--num-spectra", 5)
    anchor = ("--anchor", study_file, "--store", tmp_path, "--num-spectra", 5)
    assert "no rows yet" in mistake(capsys, "evaluate", original, shards, *anchor)
    assert "is about log_g, " in mistake(capsys, "evaluate", original, shards, *anchor, "--label", "T_eff")


def test_an_anchor_is_scored_under_the_noise_of_its_study(shards, cache_root, one, tmp_path):
    _, model, _ = one
    study, _, row = trained(shards, cache_root, tmp_path, RULES["bf16, other noise"])
    (tmp_path / "other.py").write_text(
        f"from tests.inference.models import RULES, study_of\nSTUDY = study_of({str(shards)!r}, RULES['bf16, other noise'])\n"
    )
    run("evaluate", model, shards, "--cache", cache_root, "--anchor", tmp_path / "other.py", "--store", tmp_path)
    kept = json.loads((tmp_path / study.name / "anchors" / "model.json").read_text())
    assert kept["eval_pin"] == row.eval_pin


@pytest.mark.gpu
def test_a_gpu_gives_the_same_numbers_but_for_rounding(shards, cache_root, one, tmp_path):
    _, model, row = one
    run("evaluate", model, shards, "--cache", cache_root, "--json", tmp_path / "found.json")
    assert json.loads((tmp_path / "found.json").read_text())["test_mae_dex"] == pytest.approx(
        row.test_mae_dex, rel=1e-3
    )
    spectra = shards.parent / "hdf5" / "test" / "dataset.h5"
    run("predict", model, spectra, tmp_path / "out.parquet", "--noise-seed", 42)
    table = predicted(tmp_path / "out.parquet")
    assert (table["log_g_predicted"] - table["log_g"]).abs().mean() == pytest.approx(row.test_mae_dex, rel=1e-3)
