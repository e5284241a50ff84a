"""The peak that a trial's MFU is a fraction of: of a GPU, the most that was measured on its node."""

import json

import pytest
import torch

from scaling.training import device as module
from scaling.training.device import PEAKS, measure

GPU = torch.device("cuda", 0)


@pytest.fixture
def measured(monkeypatch):
    """Sets what a GPU's products reach at the moment."""
    now = {"peak": 1e14}
    monkeypatch.setattr(module, "_peak_flops", lambda *_: now["peak"])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GPU")
    return now


def test_a_gpus_peak_is_the_most_that_was_measured_on_the_node(measured, tmp_path):
    for peak, most in ((1e14, 1e14), (4e13, 1e14), (2e14, 2e14), (1e14, 2e14)):
        measured["peak"] = peak
        assert measure(GPU, "bf16", tmp_path).peak_flops == most
    measured["peak"] = 3e13
    assert measure(GPU, "fp32", tmp_path).peak_flops == 3e13, "of another precision"
    assert measure(GPU, "bf16").peak_flops == 3e13, "without a cache"
    assert len(json.loads((tmp_path / PEAKS).read_bytes())) == 2


@pytest.mark.parametrize("content", ["", "[1]", '{"GPU": "much"}'])
def test_a_damaged_file_of_peaks_is_not_believed(measured, tmp_path, content):
    (tmp_path / PEAKS).write_text(content)
    assert measure(GPU, "bf16", tmp_path).peak_flops == 1e14
    measured["peak"] = 1e13
    assert measure(GPU, "bf16", tmp_path).peak_flops == 1e14, "it is rewritten"


def test_a_cache_that_is_not_there_keeps_nothing(measured, tmp_path):
    assert measure(GPU, "bf16", tmp_path / "absent").peak_flops == 1e14
    assert not list(tmp_path.iterdir())
