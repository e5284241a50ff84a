"""Ridge is the closed form, and trees are the same trees, on the spectra and the noise that a Transformer is trained on."""

import dataclasses

import numpy as np
import pytest
import torch

from scaling.baselines.fitted import answers
from scaling.baselines.ridge import PENALTIES, fit_ridge
from scaling.baselines.settings import LightGBM
from scaling.baselines.trees import NoisySpectra, fit_trees
from scaling.data.batches import DataRules, EvaluationSplit, Standardisation, Worker, training_batches
from scaling.data.shards.manifest import Manifest
from scaling.training.evaluate import score
from tests.data.shards.converting import read_split

FIXED, FRESH = DataRules(noise="fixed", noise_seed=3, other_labels=("T_eff",)), DataRules(noise="fresh")
GIANTS = DataRules(noise="fixed", boundary=3.0)
SETTING = LightGBM(trees=40, patience=10, leaves=7)


@pytest.fixture
def split(shards, cache_root):
    def load(rules, name="val"):
        return EvaluationSplit.load(shards, rules, name, Worker(cache_root=cache_root, device=torch.device("cpu")))

    return load


def labels_of(shards, rules, params):
    return Standardisation.of(shards, rules).normalise_labels(params[list(rules.labels)].to_numpy()).astype(np.float64)


def test_noisy_spectra_are_those_that_a_transformer_is_trained_on(shards, cache_root):
    manifest, worker = Manifest.load(shards), Worker(cache_root=cache_root, device=torch.device("cpu"))
    spectra = NoisySpectra(manifest, FIXED, 200, FIXED.noise_seed)
    batches = training_batches(shards, FIXED, 200, 200, seed=0, worker=worker, access="mapped")
    seen = batches.batch(0)[0].numpy()
    batches.close()
    mine = spectra[0:200]
    assert len(spectra) == 200
    assert np.array_equal(np.sort(mine[:, 0]), np.sort(seen[:, 0]))
    assert np.array_equal(spectra[120:140], mine[120:140])  # across the end of a shard of 128
    assert np.array_equal(spectra[131], mine[131])
    assert np.array_equal(spectra[3], mine[3])


def test_ridge_is_the_closed_form_at_every_number_of_spectra_of_one_pass(shards, split):
    manifest, val = Manifest.load(shards), split(FIXED)
    flux = NoisySpectra(manifest, FIXED, 300, FIXED.noise_seed)[0:300]
    labels = labels_of(shards, FIXED, read_split(shards, "train")[2])
    for found in fit_ridge(manifest, FIXED, (90, 128, 300), val):
        x, y = flux[: found.num_spectra], labels[: found.num_spectra]
        centred, product = x - x.mean(axis=0), y - y.mean(axis=0)
        system = centred.T @ centred / len(x) + found.penalty * np.eye(x.shape[1])
        weights = np.linalg.solve(system, centred.T @ product / len(x))
        expected = (val.flux.numpy() - x.mean(axis=0)) @ weights + y.mean(axis=0)
        assert np.allclose(found.predict(val.flux.numpy()), expected, atol=1e-5)
        assert found.num_params == 2 * (x.shape[1] + 1)


def test_ridge_with_fresh_noise_is_the_fit_to_ever_more_draws(shards, split):
    manifest, val = Manifest.load(shards), split(FRESH)
    found = next(fit_ridge(manifest, FRESH, (300,), val))
    labels, ours = labels_of(shards, FRESH, read_split(shards, "train")[2]), found.predict(val.flux.numpy())
    apart = []
    for count in (10, 40, 160):
        draws = [NoisySpectra(manifest, FRESH, 300, seed)[0:300] for seed in range(count)]
        mean, y = np.mean([each.mean(axis=0) for each in draws], axis=0), labels - labels.mean()
        system = sum((each - mean).T @ (each - mean) for each in draws) / (300 * count)
        product = sum((each - mean).T @ y for each in draws) / (300 * count)
        weights = np.linalg.solve(system + found.penalty * np.eye(len(mean)), product)
        apart.append(np.std((val.flux.numpy() - mean) @ weights + labels.mean() - ours))
    assert apart[1] < 0.7 * apart[0]  # as one over the root of their number, 0.5
    assert apart[2] < 0.7 * apart[1]
    assert apart[2] < 0.2 * np.std(ours - val.labels.numpy())


def test_the_penalty_is_the_one_with_the_least_error_on_the_validation_split(shards, split, monkeypatch):
    manifest, val = Manifest.load(shards), split(FIXED)
    best = next(fit_ridge(manifest, FIXED, (256,), val))
    error = score(answers(best.predict, val), val)[0].mae
    for part in (PENALTIES[:5], PENALTIES[-5:]):
        monkeypatch.setattr("scaling.baselines.ridge.PENALTIES", part)
        other = next(fit_ridge(manifest, FIXED, (256,), val))
        assert score(answers(other.predict, val), val)[0].mae >= error


def test_trees_do_not_depend_on_threads_and_stop_early(shards, split):
    manifest, val = Manifest.load(shards), split(FIXED)
    one, two = (fit_trees(dataclasses.replace(SETTING, cpus=n), manifest, FIXED, 300, 1, val) for n in (1, 2))
    found = answers(one.predict, val)
    assert torch.equal(found, answers(two.predict, val))
    assert found.shape == (1, 64, 2)
    assert 0 < one.steps <= 2 * SETTING.trees
    assert one.num_params <= one.steps * (3 * SETTING.leaves - 2)
    assert score(found, val)[0].r2 > 0.3
    patient = dataclasses.replace(SETTING, trees=3000, patience=5)
    assert fit_trees(patient, manifest, FRESH, 128, 1, split(FRESH)).steps < 3000


def test_trees_with_fresh_noise_see_each_spectrum_under_several_draws(shards, split):
    manifest, val = Manifest.load(shards), split(FRESH)
    one, four = (fit_trees(dataclasses.replace(SETTING, draws=n), manifest, FRESH, 200, 1, val) for n in (1, 4))
    assert (one.samples_seen, four.samples_seen) == (200, 800)
    errors = [score(answers(each.predict, val), val)[0].mae for each in (one, four)]
    assert errors[1] < errors[0]


def test_both_classify(shards, split):
    manifest, val = Manifest.load(shards), split(GIANTS)
    guess = min(val.labels.mean(), 1 - val.labels.mean())
    for found in (
        next(fit_ridge(manifest, GIANTS, (300,), val)),
        fit_trees(SETTING, manifest, GIANTS, 300, 1, val),
    ):
        assert score(answers(found.predict, val), val)[0].error_rate < guess


def test_memory_is_bounded_whatever_the_number_of_spectra(shards):
    """A shard is held, not the prefix."""
    spectra = NoisySpectra(Manifest.load(shards), FIXED, 300, 0)
    for start in range(0, 300, 50):
        assert spectra[start : start + 50].shape == (50, 1024)
        assert len(spectra._flux) <= Manifest.load(shards).rows_per_shard
