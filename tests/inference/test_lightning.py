"""Checkpoints of the original, against a forward pass written here from the description and against transformers' own."""

import argparse
import math

import pytest
import torch

from scaling.errors import UserError
from scaling.inference.lightning import read_lightning
from scaling.model.ladder import count_parameters
from scaling.model.specvit import ModelConfig
from tests.bombs import Bomb

WIDTH, DEPTH, HEADS, PATCH, MLP, PIXELS = 64, 3, 2, 16, 160, 256


def original_weights(patches=PIXELS // PATCH, sliding=False, outputs=1, width=WIDTH, mlp=MLP, depth=DEPTH, pooler=True):
    """A random checkpoint in the names of transformers 4.56; large enough values that every part tells."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape, std=0.3):
        return std * torch.randn(*shape, generator=generator)

    def linear(name, out, into):
        return {f"{name}.weight": draw(out, into, std=0.8 * into**-0.5), f"{name}.bias": draw(out)}

    def norm(name):
        return {f"{name}.weight": 1 + draw(width), f"{name}.bias": draw(width)}

    embeddings = "vit.embeddings"
    weights = {
        f"{embeddings}.cls_token": draw(1, 1, width, std=1.0),
        f"{embeddings}.position_embeddings": draw(1, patches + 1, width, std=1.0),
    }
    projection = linear(f"{embeddings}.patch_embeddings.projection", width, PATCH)
    if not sliding:
        projection[f"{embeddings}.patch_embeddings.projection.weight"].unsqueeze_(1)
    weights |= projection
    for i in range(depth):
        layer = f"vit.encoder.layer.{i}"
        for part in ("query", "key", "value"):
            weights |= linear(f"{layer}.attention.attention.{part}", width, width)
        weights |= linear(f"{layer}.attention.output.dense", width, width)
        weights |= linear(f"{layer}.intermediate.dense", mlp, width) | linear(f"{layer}.output.dense", width, mlp)
        weights |= norm(f"{layer}.layernorm_before") | norm(f"{layer}.layernorm_after")
    weights |= norm("vit.layernorm") | linear("regressor", outputs, width)
    if pooler:
        weights |= linear("vit.pooler.dense", width, width)
    return {f"model.{name}": value for name, value in weights.items()}


def save(path, weights, **others):
    """A file in Lightning's shape."""
    checkpoint = {
        "epoch": 129,
        "global_step": 504_003,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": weights,
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'val_mae'}": {"best_model_score": torch.tensor(0.372)}},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"betas": (0.9, 0.999)}]}],
        "lr_schedulers": [{"T_max": 200, "_last_lr": [1e-4]}],
        "hyper_parameters": {"lr": 3e-4},
    }
    torch.save(checkpoint | others, path)
    return path


def forward_by_description(weights, flux, heads, stride=PATCH):
    """The original's forward pass, from `reference/README.md` and the ViT paper: pre-norm, GELU, eps 1e-12, class token."""
    w = {name.removeprefix("model."): value.double() for name, value in weights.items()}
    width = w["vit.layernorm.weight"].numel()

    def linear(name, x):
        return torch.einsum("...i,oi->...o", x, w[f"{name}.weight"]) + w[f"{name}.bias"]

    def norm(name, x):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-12)
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    projection = "vit.embeddings.patch_embeddings.projection"
    kernel = w[f"{projection}.weight"].reshape(width, -1)
    patch, tokens = kernel.shape[1], w["vit.embeddings.position_embeddings"].shape[1]
    rows = []
    for spectrum in flux.double():
        windows = []
        for t in range(tokens - 1):
            window = spectrum[t * stride : t * stride + patch]
            windows.append(torch.cat([window, torch.zeros(patch - len(window), dtype=torch.float64)]))
        patches = torch.stack(windows) @ kernel.T + w[f"{projection}.bias"]
        h = torch.cat([w["vit.embeddings.cls_token"][0], patches]) + w["vit.embeddings.position_embeddings"][0]
        i = 0
        while f"vit.encoder.layer.{i}.output.dense.weight" in w:
            layer = f"vit.encoder.layer.{i}"
            x = norm(f"{layer}.layernorm_before", h)
            q, k, v = (linear(f"{layer}.attention.attention.{part}", x) for part in ("query", "key", "value"))
            mixed, size = [], width // heads
            for head in range(heads):
                mine = slice(head * size, (head + 1) * size)
                scores = (q[:, mine] @ k[:, mine].T / math.sqrt(size)).exp()
                mixed.append(scores / scores.sum(1, keepdim=True) @ v[:, mine])
            h = h + linear(f"{layer}.attention.output.dense", torch.cat(mixed, 1))
            x = linear(f"{layer}.intermediate.dense", norm(f"{layer}.layernorm_after", h))
            h = h + linear(f"{layer}.output.dense", 0.5 * x * (1 + torch.erf(x / math.sqrt(2))))
            i += 1
        rows.append(linear("regressor", norm("vit.layernorm", h)[0]))
    return torch.stack(rows)


@pytest.fixture(scope="module")
def flux():
    return torch.randn(5, PIXELS, generator=torch.Generator().manual_seed(1)).clamp(min=0) + 0.5


@pytest.mark.parametrize("heads", [None, 8])
def test_predictions_are_those_of_the_description(tmp_path, flux, heads):
    weights = original_weights()
    model, about = read_lightning(save(tmp_path / "best.ckpt", weights), num_heads=heads)
    with torch.no_grad():
        found = model(flux)
    expected = forward_by_description(weights, flux, heads or HEADS)
    assert expected.std() > 0.03  # the spectra differ, so that agreement says something
    assert (found - expected).abs().max() < 1e-5
    assert about == {"source": "best.ckpt", "epoch": 129, "global_step": 504_003}


@pytest.mark.parametrize(("stride", "pixels"), [(8, PIXELS), (12, PIXELS), (16, PIXELS - 3)])
def test_a_sliding_window_is_inferred_with_its_stride(tmp_path, flux, stride, pixels):
    flux = flux[:, :pixels]
    patches = -(-(pixels - PATCH) // stride) + 1
    weights = original_weights(patches, sliding=True)
    model, _ = read_lightning(save(tmp_path / "best.ckpt", weights), num_pixels=pixels)
    assert (model.config.tokenizer, model.config.step, model.config.num_pixels) == ("sliding", stride, pixels)
    with torch.no_grad():
        assert (model(flux) - forward_by_description(weights, flux, HEADS, stride)).abs().max() < 1e-5


def test_predictions_are_those_of_transformers(tmp_path, flux):
    """Its ViT layers have been renamed since the original's version; their arithmetic has not."""
    vit = pytest.importorskip("transformers.models.vit.modeling_vit")
    weights = original_weights()
    config = vit.ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=MLP,
        layer_norm_eps=1e-12,
    )
    config._attn_implementation = "eager"
    w = {name.removeprefix("model.vit."): value for name, value in weights.items()}
    new_names = (
        ("attention.attention.query", "attention.q_proj"),
        ("attention.attention.key", "attention.k_proj"),
        ("attention.attention.value", "attention.v_proj"),
        ("attention.output.dense", "attention.o_proj"),
        ("intermediate.dense", "mlp.fc1"),
        ("output.dense", "mlp.fc2"),
    )
    embeddings = w["embeddings.cls_token"].expand(len(flux), -1, -1)
    kernel, bias = (w[f"embeddings.patch_embeddings.projection.{kind}"] for kind in ("weight", "bias"))
    patches = torch.nn.functional.conv1d(flux[:, None], kernel, bias, stride=PATCH).transpose(1, 2)
    hidden = torch.cat((embeddings, patches), 1) + w["embeddings.position_embeddings"]
    with torch.no_grad():
        for i in range(DEPTH):
            layer, prefix = vit.ViTLayer(config).eval(), f"encoder.layer.{i}."
            state = {name.removeprefix(prefix): value for name, value in w.items() if name.startswith(prefix)}
            for old, new in new_names:
                state = {name.replace(old, new): value for name, value in state.items()}
            layer.load_state_dict(state)
            hidden = layer(hidden)
        hidden = torch.nn.functional.layer_norm(hidden, (WIDTH,), w["layernorm.weight"], w["layernorm.bias"], 1e-12)
        expected = hidden[:, 0] @ weights["model.regressor.weight"].T + weights["model.regressor.bias"]
        model, _ = read_lightning(save(tmp_path / "best.ckpt", weights))
        assert (model(flux) - expected).abs().max() < 1e-5


def test_the_published_model_has_its_audited_size(tmp_path):
    weights = original_weights(256, width=256, mlp=1024, depth=6)
    assert sum(value.numel() for value in weights.values()) == 4_875_521  # as published, with the pooler
    model, _ = read_lightning(save(tmp_path / "best.ckpt", weights))
    assert model.config == ModelConfig()
    assert count_parameters(model.config).reach_loss == 4_809_729


def test_weights_saved_again_alone_are_enough(tmp_path, flux):
    torch.save({"state_dict": original_weights(outputs=3, pooler=False)}, tmp_path / "weights.ckpt")
    model, about = read_lightning(tmp_path / "weights.ckpt")
    assert model(flux).shape == (5, 3)
    assert about == {"source": "weights.ckpt"}


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    trace = tmp_path / "trace"
    save(tmp_path / "evil.ckpt", original_weights(), callbacks=Bomb(trace))
    with pytest.raises(
        UserError, match=r"evil\.ckpt: not loaded, because it holds os.makedirs.*save its weights alone"
    ):
        read_lightning(tmp_path / "evil.ckpt")
    assert not trace.exists()
    torch.load(tmp_path / "evil.ckpt", weights_only=False)
    assert trace.exists()  # it would have
    save(tmp_path / "other.ckpt", original_weights(), hyper_parameters=argparse.Namespace(lr=1))
    with pytest.raises(UserError, match=r"argparse\.Namespace"):
        read_lightning(tmp_path / "other.ckpt")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut short"])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "bad.ckpt").write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.ckpt: not a PyTorch checkpoint, or a damaged one"):
        read_lightning(tmp_path / "bad.ckpt")


@pytest.mark.parametrize("content", [[1], {"weights": {}}, {"state_dict": [1]}, {"state_dict": {"model.x": 1}}])
def test_a_file_without_weights_is_named(tmp_path, content):
    torch.save(content, tmp_path / "bad.ckpt")
    with pytest.raises(UserError, match=r"bad\.ckpt: no 'state_dict' of tensors"):
        read_lightning(tmp_path / "bad.ckpt")


def test_other_names_are_listed(tmp_path):
    weights = original_weights()
    del weights["model.vit.embeddings.position_embeddings"], weights["model.vit.encoder.layer.1.output.dense.bias"]
    weights["model.preprocessor.weight"] = torch.zeros(3)
    with pytest.raises(UserError) as error:
        read_lightning(save(tmp_path / "other.ckpt", weights))
    for words in ("position_embeddings", "layer.1.output.dense.bias", "unknown model.preprocessor.weight"):
        assert words in str(error.value)
    with pytest.raises(UserError, match=r"and \d+ more"):
        read_lightning(save(tmp_path / "other.ckpt", {"x": torch.zeros(1)}))


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("vit.embeddings.cls_token", (1, 1, 32), "do not fit together"),
        ("vit.embeddings.position_embeddings", (17, WIDTH), "expected .*patch"),
        ("vit.embeddings.patch_embeddings.projection.weight", (WIDTH, 1, 4, 4), "expected .*patch"),
        ("vit.encoder.layer.1.attention.attention.key.weight", (WIDTH, 8), "do not fit together"),
    ],
)
def test_other_shapes_are_refused(tmp_path, name, shape, words):
    weights = original_weights() | {f"model.{name}": torch.zeros(shape)}
    with pytest.raises(UserError, match=words):
        read_lightning(save(tmp_path / "other.ckpt", weights))


def test_dimensions_that_do_not_fit_name_the_flag(tmp_path):
    path = save(tmp_path / "best.ckpt", original_weights(31, sliding=True))
    with pytest.raises(UserError, match=r"no stride fits 31 patches .* 200 pixels: .*--stride"):
        read_lightning(path, num_pixels=200)
    with pytest.raises(UserError, match="a stride of 4 cuts 256 pixels into 61: give another --stride"):
        read_lightning(path, stride=4, num_pixels=256)
    with pytest.raises(UserError, match=r"several strides of 13, 14, 15, 16 fit 2 patches"):
        read_lightning(save(tmp_path / "few.ckpt", original_weights(2, sliding=True)), num_pixels=29)
    with pytest.raises(UserError, match="num_heads"):
        read_lightning(path, num_heads=5, num_pixels=256)
