"""Models as transformers knows them: a trial's folder, folders for the hub, with and without this project."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from transformers import AutoModel

from scaling.inference.hub import card, write_hub
from scaling.inference.trained import open_model
from scaling.model.checkpoint import load_model
from scaling.model.ladder import Ladder, Whitening
from scaling.model.modeling_specvit import DIMENSIONS, SpecViTConfig, SpecViTForRegression
from scaling.model.specvit import ModelConfig, SpecViT
from tests.inference.models import RULES, mistake, run, trained

SMALL = Ladder(num_pixels=1024, patch_size=128, dropout=0.0, attention_dropout=0.0)
WITHOUT_THIS_PROJECT = """
import sys

class Absent:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("scaling", "analysis", "jaxtyping", "beartype"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import torch
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
torch.save(model(torch.load(sys.argv[2])).predictions.detach(), sys.argv[3])
"""


@pytest.fixture(scope="module")
def flux():
    return 1.0 + 0.1 * torch.randn(4, 1024, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def hub(one, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "specvit"
    run("export", one[1], "--hub", folder)
    return folder


def by_hand(path, flux):
    """A model file's labels in their own units."""
    model = open_model(path)
    used = model.standardisation
    logits = model.model((flux - torch.from_numpy(used.flux_offset)) / torch.from_numpy(used.flux_scale))
    return logits.double() * torch.from_numpy(used.label_scale) + torch.from_numpy(used.label_offset)


def close(found, expected, tolerance=1e-5):
    return torch.allclose(found.double(), expected.double(), rtol=tolerance, atol=tolerance)


def test_a_trials_folder_is_a_pretrained_model(one, flux, tmp_path):
    model = SpecViTForRegression.from_pretrained(one[1].parent)
    assert not model.training
    assert close(model(flux).predictions, by_hand(one[1], flux))
    model.save_pretrained(tmp_path / "saved")
    for path in (one[1].parent, tmp_path / "saved"):
        weights, statistics, about = load_model(path)
        expected = load_model(one[1])
        assert (weights.config, about) == (expected[0].config, expected[2])
        for found, wanted in ((weights.state_dict(), expected[0].state_dict()), (statistics, expected[1])):
            assert found.keys() == wanted.keys()
            assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_labels_give_the_loss_that_a_trial_trains_on(one, flux):
    model = SpecViTForRegression.from_pretrained(one[1].parent)
    truth = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    answer, (offset, scale) = (
        model(flux, truth),
        (model.config.about[f"label_{name}"][0] for name in ("offset", "scale")),
    )
    assert close(answer.loss, (answer.logits - (truth - offset) / scale).square().mean())


def test_a_hub_folder_loads_without_this_project(one, hub, flux, tmp_path):
    torch.save(flux, tmp_path / "flux.pt")
    places = [hub, tmp_path / "flux.pt", tmp_path / "found.pt"]
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    subprocess.run(
        [sys.executable, "-c", WITHOUT_THIS_PROJECT, *map(str, places)], cwd=tmp_path, env=environment, check=True
    )
    assert close(torch.load(tmp_path / "found.pt"), by_hand(one[1], flux))


def test_its_code_runs_only_where_that_is_asked_for(hub):
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModel.from_pretrained(hub, trust_remote_code=False)


def test_a_hub_folder_is_evaluated_as_the_trial(one, hub, shards, cache_root, tmp_path):
    run("evaluate", hub, shards, "--cache", cache_root, "--json", tmp_path / "found.json")
    assert json.loads((tmp_path / "found.json").read_text())["test_mae_dex"] == one[2].test_mae_dex


def test_the_card_says_how_well_and_for_what(one, hub):
    text, row = (hub / "README.md").read_text(), one[2]
    assert (
        f"| {row.num_params:,} | {row.num_spectra:,} | MAE {row.test_mae_dex:.4f} ± {row.test_mae_sem_dex:.4f} dex"
        in text
    )
    assert f"{row.test_mae_z:.4f} ± {row.test_mae_sem_z:.4f} standard deviations" in text
    assert f"an MAE of {row.test_guess_mae_dex:.4f} dex" in text
    assert f"Tested at true log_g from {json.loads(row.test_by_label)[0]['low']:.4g}" in text
    assert "not measured here" in card(open_model(hub))  # whose row is not beside it


def test_a_classification_answers_with_a_probability(shards, cache_root, flux, tmp_path):
    _, path, row = trained(shards, cache_root, tmp_path / "store", RULES["classes"])
    model = SpecViTForRegression.from_pretrained(path.parent)
    answer = model(flux, torch.tensor([[2.0], [3.0], [2.0], [3.0]]))
    assert torch.equal(answer.predictions, answer.logits.sigmoid())
    wanted = torch.nn.functional.binary_cross_entropy(answer.predictions, torch.tensor([[0.0], [1.0], [0.0], [1.0]]))
    assert close(answer.loss, wanted)
    text = card(open_model(path))
    assert "the probability that log_g > 2.5" in text
    assert f"| {row.test_error_rate:.4f}; {row.num_test} spectra |" in text


def test_an_original_checkpoint_becomes_a_hub_folder(original, flux, tmp_path):
    flags = ("--label-mean", 3, "--label-std", 1.2, "--num-spectra", 1_000_000)
    run("export", original, tmp_path / "original.safetensors", "--hub", tmp_path / "hub", *flags)
    model = SpecViTForRegression.from_pretrained(tmp_path / "hub")
    assert model.statistics.wave.isnan().all()
    assert close(model(flux).predictions, by_hand(tmp_path / "original.safetensors", flux))
    assert open_model(tmp_path / "hub").wave is None
    assert "| 1,000,000 | not measured here" in (tmp_path / "hub" / "README.md").read_text()


@pytest.mark.parametrize(
    "changes", [{"positions": "rope"}, {"positions": "none"}, {"whitening": Whitening(kind="zca")}]
)
def test_every_kind_of_model_loads_as_it_was_saved(changes, flux, tmp_path):
    config = dataclasses.replace(SMALL, **changes).rung(32, num_outputs=2)
    model = SpecViTForRegression(SpecViTConfig(**dataclasses.asdict(config))).eval()
    model.save_pretrained(tmp_path)
    again = SpecViTForRegression.from_pretrained(tmp_path)
    assert again.config.dimensions() == config
    assert close(again(flux).logits, model(flux).logits)
    halved = SpecViTForRegression.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert close(halved(flux).logits, model(flux).logits, 0.1)
    assert halved.statistics.flux_offset.dtype == torch.float32


def test_transformers_kernels_give_the_attention_of_the_layers(flux, tmp_path):
    model = SpecViTForRegression(SpecViTConfig(**dataclasses.asdict(SMALL.rung(64)))).eval()
    expected = model(flux).logits
    model.save_pretrained(tmp_path)
    for name in ("eager", "sdpa"):
        assert close(SpecViTForRegression.from_pretrained(tmp_path, attn_implementation=name)(flux).logits, expected)
    with pytest.raises(ValueError, match="unknown"):
        SpecViTForRegression.from_pretrained(tmp_path, attn_implementation="unknown")


def test_the_config_is_that_of_the_layers():
    config = SpecViTConfig()
    assert config.dimensions() == ModelConfig()
    assert SpecViTConfig(hidden_size=64, num_attention_heads=2).dimensions() == ModelConfig(width=64, num_heads=2)
    assert DIMENSIONS.keys() == {field.name for field in dataclasses.fields(ModelConfig)}
    with pytest.raises(ValueError, match="num_heads = 7"):
        SpecViTConfig(num_heads=7)


def test_weights_begin_as_a_trials_do():
    torch.manual_seed(1)
    alone = SpecViT(SMALL.rung(32))
    torch.manual_seed(1)
    wrapped = SpecViTForRegression(SpecViTConfig(**dataclasses.asdict(SMALL.rung(32))))
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), wrapped.model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "vit"}, "is of model_type 'vit', not 'specvit', and no code in a folder is run"),
        ({"auto_map": {"AutoModel": "evil.Model"}, "model_type": "evil"}, "no code in a folder is run"),
        ({"width": "wide"}, "width"),
        ({"depth": 10**9}, "and its config is that of"),
        ({"about": None}, "has no object `about`"),
        ({"about": {}}, "another version"),
        ("[]", "expected a JSON object"),
        ("{", "cannot be read as JSON"),
        (None, "No such file"),
    ],
)
def test_a_foreign_or_damaged_folder_is_one_line(one, shards, capsys, tmp_path, config, words):
    folder = tmp_path / "model"
    shutil.copytree(one[1].parent, folder)
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    path = folder / "config.json"
    if isinstance(config, dict):
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
    elif config is None:
        path.unlink()
    else:
        path.write_text(config)
    line = mistake(capsys, "evaluate", folder, shards)
    assert words in line
    assert str(folder) in line


def test_weights_of_another_architecture_are_one_line(one, shards, capsys, tmp_path):
    from transformers import ViTConfig, ViTModel

    ViTModel(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)).save_pretrained(
        tmp_path
    )
    capsys.readouterr()
    assert "is of model_type 'vit'" in mistake(capsys, "evaluate", tmp_path, shards)
    shutil.copy(one[1].with_name("config.json"), tmp_path / "config.json")
    assert "0 weights, and its config is that of" in mistake(capsys, "evaluate", tmp_path, shards)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["export", "{model}"], "name OUT.safetensors, or --hub DIR"),
        (["export", "{model}", "out.safetensors"], "is a model file already"),
        (["export", "{model}", "--hub", "there"], "is there already"),
        (["export", "{model}", "--hub", "no/such/place"], "there is no folder"),
        (["export", "{model}", "--hub", "new", "--num-spectra", "3"], "says it itself"),
        (["export", "{model}", "--hub", "new", "--heads", "2"], "leave out their flags"),
    ],
)
def test_mistakes_of_an_export_are_one_line(one, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    assert words in mistake(capsys, *(argument.format(model=one[1]) for argument in arguments))
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_folder_that_could_not_be_written_is_not_there(one, tmp_path, monkeypatch):
    monkeypatch.setattr("scaling.inference.hub.card", lambda model: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_hub(open_model(one[1]), tmp_path / "hub")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_line(one, small_disk, capsys):
    disk = small_disk(16384)
    line = mistake(capsys, "export", one[1], "--hub", disk / "hub")
    assert "cannot be written" in line
    assert not list(disk.iterdir())
