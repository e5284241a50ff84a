"""Whitening: noisy training spectra get mean 0 and covariance 1, and a node works the map out once."""

import errno

import numpy as np
import pytest
import torch

from scaling.data.batches import DataRules, Standardisation, Worker
from scaling.data.batches import whitening as module
from scaling.data.batches.cachefolder import evict
from scaling.data.batches.whitening import fit_whitening, noisy_moments, whitening_map
from scaling.data.shards.manifest import Manifest
from scaling.errors import NodeError
from tests.data.shards.converting import read_split

RULES = DataRules(noise="fresh", noise_level=0.7)
CPU = torch.device("cpu")


@pytest.mark.parametrize(("kind", "components"), [("pca", 24), ("zca", 0)])
def test_whitened_noisy_spectra_have_mean_0_and_covariance_1(shards, tmp_path, kind, components):
    flux, error, _ = read_split(shards, "train")
    standardisation = Standardisation.of(shards, RULES)
    found = fit_whitening(shards, RULES, kind, components, Worker(cache_root=tmp_path, device=CPU))
    rng, draws = np.random.default_rng(1), 40
    # Seen along 24 axes at right angles: the components, or any.
    axes = np.eye(24) if kind == "pca" else np.linalg.qr(rng.standard_normal((1024, 24)))[0]
    weight, bias = (found.weight.T.numpy() @ axes).astype(np.float32), found.bias.numpy() @ axes
    total, square = 0.0, 0.0
    for _ in range(draws):
        noisy = flux.clip(0) + np.float32(0.7) * rng.standard_normal(flux.shape, np.float32) * error
        white = (noisy - standardisation.flux_offset) / standardisation.flux_scale @ weight + bias
        total, square = total + white.mean(axis=0) / draws, square + white.T @ white / (len(white) * draws)
    assert np.abs(total).max() < 0.06
    assert np.abs(square - np.eye(len(square))).max() < 0.08  # 12,000 noisy spectra: a standard error of 0.013 at most


@pytest.mark.parametrize("input_norm", ["none", "global", "mean_spectrum", "per_pixel"])
@pytest.mark.parametrize("rows", [200, 65_536])
def test_the_moments_are_those_of_all_rows_at_once(shards, monkeypatch, input_norm, rows):
    monkeypatch.setattr(module, "WHITENING_ROWS", rows)
    rules = DataRules(input_norm=input_norm, noise_level=0.7)
    flux, error, _ = (values[:rows] for values in read_split(shards, "train"))
    standardisation = Standardisation.of(shards, rules)
    scale = standardisation.flux_scale.astype(float)
    inputs = (flux.clip(0).astype(float) - standardisation.flux_offset) / scale
    expected = np.cov(inputs.T, bias=True) + np.diag(0.49 * (error.astype(float) ** 2).mean(axis=0) / scale**2)
    mean, covariance = noisy_moments(Manifest.load(shards), rules, CPU)
    assert np.allclose(mean, inputs.mean(axis=0), rtol=1e-9, atol=1e-9 * np.abs(inputs).max())
    assert np.allclose(covariance, expected, rtol=1e-7, atol=1e-10 * np.abs(expected).max())


def test_the_maps_are_the_textbook_ones():
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(500, 6)) @ rng.normal(size=(6, 6)) + 3.0
    mean, covariance = samples.mean(axis=0), np.cov(samples.T, bias=True)
    values, vectors = np.linalg.eigh(covariance)
    zca = vectors @ np.diag(values**-0.5) @ vectors.T
    moments = torch.from_numpy(mean), torch.from_numpy(covariance)
    found = whitening_map(*moments, "zca", 0)
    assert np.allclose(found.weight, zca, atol=1e-6)
    assert np.allclose(found.bias, -zca @ mean, atol=1e-5)
    pca, leading = whitening_map(*moments, "pca", 0), whitening_map(*moments, "pca", 2)
    rows = (vectors / np.sqrt(values)).T[::-1]
    for k, row in enumerate(pca.weight.numpy()):
        assert row[np.abs(row).argmax()] > 0
        assert np.allclose(row, rows[k] * np.sign(rows[k] @ row), atol=1e-6)
    assert np.allclose(leading.weight, pca.weight[:2], atol=1e-6)
    white = samples @ pca.weight.T.numpy() + pca.bias.numpy()
    assert np.allclose(np.cov(white.T, bias=True), np.eye(6), atol=1e-5)


def test_directions_without_any_variance_are_not_blown_up():
    covariance = torch.tensor([4.0, 1.0, 0.0, -1e-17], dtype=torch.float64).diag()
    weight = whitening_map(torch.zeros(4, dtype=torch.float64), covariance, "pca", 0).weight
    assert np.allclose(weight.abs().amax(dim=1), [0.5, 1.0, 1 / (4e-10) ** 0.5, 1 / (4e-10) ** 0.5])


def test_a_node_fits_a_map_once_and_again_after_an_eviction(shards, tmp_path, monkeypatch):
    fitted = []

    def moments(manifest, rules, device):
        fitted.append(rules)
        sizes = torch.arange(1.0, 17.0, dtype=torch.float64)
        return torch.ones_like(sizes), sizes.diag() + rules.noise_level

    def fit(rules=RULES, kind="pca", components=8):
        return fit_whitening(shards, rules, kind, components, Worker(cache_root=tmp_path, device=CPU)).weight

    monkeypatch.setattr(module, "noisy_moments", moments)
    first = fit()
    assert torch.equal(first, fit())
    assert len(fitted) == 1
    assert not torch.equal(first, fit(DataRules(noise_level=0.5)))
    assert len(fit(components=9)) == 9
    assert len(fit(kind="zca", components=0)) == 16
    fit(DataRules(noise_level=0.7, input_norm="none"))
    assert len(fitted) == 5
    assert not list(tmp_path.rglob("*.tmp"))
    assert len(evict(tmp_path)) == 1
    assert torch.equal(first, fit())
    assert len(fitted) == 6


@pytest.mark.parametrize("damage", ["a byte", "cut short", "empty", "garbage"])
def test_a_map_that_was_altered_is_fitted_again(shards, tmp_path, caplog, damage):
    def fit():
        return fit_whitening(shards, RULES, "pca", 8, Worker(cache_root=tmp_path, device=CPU)).weight

    first, (path,) = fit(), tmp_path.rglob("whitening-*.map")
    content = path.read_bytes()
    altered = {"a byte": content[:5000] + b"\0\1" + content[5002:], "cut short": content[:-7], "empty": b""}
    path.write_bytes(altered.get(damage, b"garbage" * 100))
    assert torch.equal(fit(), first)
    assert len(caplog.messages) == 1
    assert path.read_bytes() == content


def test_a_cache_that_cannot_be_touched_is_an_error_of_the_node(shards, tmp_path, monkeypatch):
    def fit(cache_root):
        return fit_whitening(shards, RULES, "pca", 8, Worker(cache_root=cache_root, device=CPU))

    def full(folder):
        raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(NodeError, match="must be a real folder of yours"):
        fit(tmp_path / "link")
    monkeypatch.setattr(module, "hold", full)
    with pytest.raises(NodeError, match=r"cannot be kept \(No space left on device\): set SCALING_CACHE"):
        fit(tmp_path / "cache")


@pytest.mark.gpu
def test_a_gpu_fits_the_map_of_the_cpu(shards, tmp_path):
    cpu, gpu = (
        fit_whitening(shards, RULES, "zca", 0, Worker(cache_root=tmp_path / name, device=torch.device(name)))
        for name in ("cpu", "cuda")
    )
    assert torch.allclose(cpu.weight, gpu.weight, atol=1e-5 * float(cpu.weight.abs().max()))
