"""Models that several tests use."""

import pytest
import torch

from tests.inference.models import RULES, trained
from tests.inference.test_lightning import original_weights, save


@pytest.fixture(scope="module")
def one(shards, cache_root, tmp_path_factory):
    return trained(shards, cache_root, tmp_path_factory.mktemp("one"), RULES["one label"])


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A checkpoint of the original, of 1024 pixels."""
    return save(
        tmp_path_factory.mktemp("original") / "best.ckpt", original_weights(1024 // 16, width=32, mlp=64, depth=1)
    )


@pytest.fixture(autouse=True)
def _on_the_cpu(request, monkeypatch):
    """Where the trials of these tests run; elsewhere numbers are equal but for rounding."""
    if "gpu" not in request.keywords:
        monkeypatch.setattr("scaling.commands.model._device", lambda: torch.device("cpu"))
