import dataclasses
import json

import pytest
import torch
from safetensors.torch import save

from scaling.errors import UserError
from scaling.model.checkpoint import CONFIG_FILE, MODEL_FILE, config_bytes, load_model, model_bytes
from scaling.model.specvit import ModelConfig, SpecViT

CONFIG = ModelConfig(num_pixels=64, patch_size=16, width=8, depth=1, num_heads=2, mlp_width=16, whitening_components=32)


@pytest.fixture
def content():
    model = SpecViT(CONFIG)
    return model_bytes(CONFIG, model.state_dict(), {"flux_scale": torch.ones(64)}, {"label": "log_g"})


def test_a_model_file_holds_no_code_and_says_what_it_is(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    model, extra, about = load_model(path)
    assert (model.config, list(extra), about, model.training) == (CONFIG, ["flux_scale"], {"label": "log_g"}, False)
    length = int.from_bytes(content[:8], "little")  # the format: a length, JSON, raw numbers
    assert json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["about"]) == about


def test_a_folder_without_wavelengths_is_read(tmp_path, content):
    (tmp_path / MODEL_FILE).write_bytes(content)
    (tmp_path / CONFIG_FILE).write_bytes(config_bytes(CONFIG, {"label": "log_g"}))
    model, statistics, about = load_model(tmp_path)
    assert (model.config, list(statistics), about) == (CONFIG, ["flux_scale"], {"label": "log_g"})


@pytest.mark.parametrize("change", [{"attention": "linear"}, {"width": "8"}, {"depth": 2}])
def test_a_file_of_another_version_is_named(tmp_path, change):
    path = tmp_path / "model.safetensors"
    config = json.dumps(dataclasses.asdict(CONFIG) | change)
    tensors = {f"model.{name}": tensor for name, tensor in SpecViT(CONFIG).state_dict().items()}
    path.write_bytes(save(tensors, {"config": config, "about": "{}"}))
    with pytest.raises(UserError, match=r"model\.safetensors: not a model file, or one of another version"):
        load_model(path)


@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.999])
def test_a_file_cut_short_is_named(tmp_path, content, part):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(UserError, match=r"model\.safetensors"):
        load_model(path)
