import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from scaling.errors import UserError
from scaling.model.checkpoint import load_model, model_bytes
from scaling.model.ladder import Ladder, Whitening, count_parameters, forward_flops, train_flops
from scaling.model.specvit import ModelConfig, SpecViT

SMALL = Ladder(num_pixels=1024, patch_size=128)


def test_reference_parameters_are_the_audited_ones():
    config = Ladder().rung(256)
    assert config == ModelConfig()
    count = count_parameters(config)
    assert count.reach_loss == 4_809_729
    assert count.reach_loss - count.non_embedding == 70_400
    assert sum(p.numel() for p in SpecViT(config).parameters()) == count.reach_loss


OPTIONS = [
    Ladder(),
    SMALL,
    Ladder(num_pixels=1024, patch_size=128, tokenizer="sliding", stride=100),
    Ladder(num_pixels=1024, patch_size=128, stride=64, positions="none"),
    Ladder(num_pixels=1024, patch_size=128, positions="rope"),
    Ladder(num_pixels=1024, patch_size=16, whitening=Whitening(kind="pca", components=64, frozen_epochs=0)),
]


@pytest.mark.parametrize("ladder", OPTIONS)
@pytest.mark.parametrize("width", [4, 8, 32, 64])
def test_counted_parameters_are_those_of_the_module_and_all_reach_the_loss(ladder, width):
    model = SpecViT(ladder.rung(width))
    assert sum(p.numel() for p in model.parameters()) == count_parameters(model.config).reach_loss
    model(torch.randn(2, ladder.num_pixels)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_ladder_spans_800_to_30_million_parameters():
    assert count_parameters(SMALL.rung(4)).reach_loss == 813
    assert 28e6 < count_parameters(Ladder().rung(544)).reach_loss < 35e6
    sizes = [count_parameters(Ladder().rung(width)).reach_loss for width in (4, 8, 16, 32, 64, 128, 256, 512)]
    assert sizes == sorted(sizes)


FROZEN = Ladder(num_pixels=1024, patch_size=128, whitening=Whitening(kind="zca"))


@pytest.mark.parametrize(
    "config", [SMALL.rung(4), SMALL.rung(32, num_outputs=3), FROZEN.rung(8), *(ladder.rung(64) for ladder in OPTIONS)]
)
def test_flops_are_those_pytorch_counts(config):
    model = SpecViT(config).eval()
    if config.whitening_components and not config.whitening_trained:
        model.whitening.requires_grad_(False)
    # The counter does not know the CPU's fused attention; the plain one does the same arithmetic.
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            predicted = model(torch.randn(2, config.num_pixels))
        with FlopCounterMode(display=False) as backward:
            predicted.sum().backward()
    assert forward.get_total_flops() == 2 * forward_flops(config)
    assert forward.get_total_flops() + backward.get_total_flops() == train_flops(config, 2)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"patch_size": 100}, "patch_size"),
        ({"stride": 17}, "stride"),
        ({"positions": "rope", "width": 6, "num_heads": 2}, "rope"),
        ({"whitening_components": 5000}, "whitening_components"),
        ({"num_heads": 7}, "num_heads"),
        ({"dropout": 1.0}, "dropout"),
        ({"depth": 0}, "depth"),
    ],
)
def test_impossible_dimensions_are_refused(change, word):
    with pytest.raises(UserError, match=word):
        ModelConfig(**change)


def test_a_model_file_gives_back_the_same_predictions(tmp_path):
    model = SpecViT(SMALL.rung(8)).eval()
    path = tmp_path / "model.safetensors"
    extra = {"flux_scale": torch.full((1024,), 2.0)}
    path.write_bytes(model_bytes(model.config, model.state_dict(), extra, {"label": "log_g"}))
    again, tensors, about = load_model(path)
    flux = torch.randn(3, 1024)
    assert torch.equal(model(flux), again(flux))
    assert torch.equal(tensors["flux_scale"], extra["flux_scale"])
    assert about == {"label": "log_g"}


def test_a_damaged_model_file_is_named(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"not a model")
    with pytest.raises(UserError, match=r"model\.safetensors"):
        load_model(path)
