import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from scaling.data.batches import SplitBins, Worker, label_edges, map_split, snr_edges
from scaling.data.shards.manifest import Manifest
from scaling.data.spectra import spectrum_snr
from scaling.training.metrics import binned, class_sums, classified, detail, error_sums, gather_rows, scores


@example(176, 1, 1.0, 2)
@given(st.integers(2, 200), st.integers(1, 50), st.floats(0.1, 3.0), st.integers(1, 4))
def test_scores_of_pieces_are_those_of_the_whole(count, piece, unit, draws):
    generator = torch.Generator().manual_seed(count)
    target, predicted = torch.randn(count, 2, generator=generator), torch.randn(draws, count, 2, generator=generator)
    pieces = zip(predicted.split(piece, dim=1), target.split(piece), strict=True)
    sums = sum(error_sums(p, t) for p, t in pieces)
    for label in range(2):
        found = scores(sums[label], unit)
        error = (
            unit * (predicted.double() - target.double())[..., label].numpy()
        )  # the rounding of a difference is no bias
        truth = unit * target[:, label].double().numpy()
        each = np.abs(error).mean(axis=0)
        assert found.count == count
        assert np.isclose(found.mae, each.mean())
        assert np.isclose(found.mae_sem, each.std(ddof=1) / count**0.5, rtol=1e-6, atol=1e-9)
        assert np.isclose(found.bias, error.mean(), atol=1e-9)
        assert np.isclose(found.rmse, (error**2).mean() ** 0.5)
        assert np.isclose(found.r2, 1 - (error**2).mean() * count / ((truth - truth.mean()) ** 2).sum())


@given(st.integers(1, 200), st.integers(1, 50), st.integers(1, 4))
def test_a_classification_of_pieces_is_that_of_the_whole(count, piece, draws):
    generator = torch.Generator().manual_seed(count)
    logits, target = torch.randn(draws, count, generator=generator), torch.rand(count, generator=generator).round()
    sums = sum(class_sums(p, t) for p, t in zip(logits.split(piece, dim=1), target.split(piece), strict=True))
    found, truth = classified(sums), target.numpy() > 0.5
    probability = 1 / (1 + np.exp(-logits.double().numpy()))
    assert found.count == count
    assert np.isclose(found.error_rate, ((probability > 0.5) != truth).mean())
    assert np.isclose(found.cross_entropy, -np.log(np.where(truth, probability, 1 - probability)).mean())


def test_an_answer_that_is_not_finite_is_no_classification():
    found = classified(class_sums(torch.tensor([[0.0, torch.nan]]), torch.tensor([0.0, 1.0])))
    assert np.isnan(found.error)
    assert np.isnan(found.cross_entropy)


@given(st.integers(1, 300), st.integers(1, 12))
def test_bins_are_those_of_a_group_by_and_add_up_to_the_whole(count, number):
    rng = np.random.default_rng(count)
    draws, values = rng.normal(size=(3, count)), rng.uniform(-0.1, 1.1, count)
    edges = np.linspace(0, 1, number + 1)
    found = pd.DataFrame(binned(draws, values, edges))
    cut = pd.cut(values, [-np.inf, *edges[1:-1], np.inf], right=False, labels=False)
    size = pd.Series(np.abs(draws).mean(axis=0)).groupby(cut)
    assert found["count"].sum() == count
    assert np.allclose(found["mae_dex"], size.mean())
    assert np.allclose(found["sem_dex"], (size.std() / size.count() ** 0.5).fillna(0.0), atol=1e-7)
    assert np.allclose(found["bias_dex"], pd.Series(draws.mean(axis=0)).groupby(cut).mean())
    assert np.allclose(found["rmse_dex"], pd.Series((draws**2).mean(axis=0)).groupby(cut).mean() ** 0.5)
    assert np.isclose((found["count"] * found["mae_dex"]).sum() / count, np.abs(draws).mean())


def test_a_value_on_an_edge_is_in_the_upper_bin_and_the_greatest_in_the_last():
    found = binned(np.ones((1, 4)), np.array([1.0, 1.5, 1.5, 2.0]), np.array([1.0, 1.5, 2.0]))
    assert [(line["low"], line["high"], line["count"]) for line in found] == [(1.0, 1.5, 1), (1.5, 2.0, 3)]


def test_the_percentile_and_the_guess_are_exact():
    labels = np.linspace(1, 5, 11)
    bins = SplitBins(
        snr=np.full(11, 7.0), snr_edges=np.array([7.0, 7.0]), labels=labels, label_edges=np.array([1.0, 5.0])
    )
    found = detail(np.linspace(-1, 1, 11)[None], bins, label_mean=3.0)
    assert found.p90 == pytest.approx(1.0)
    assert found.guess_mae == pytest.approx(np.abs(labels - 3).mean())


def test_spectra_that_are_all_alike_are_in_one_bin():
    edges = snr_edges({"5": 7.0, "50": 7.0, "95": 7.0}, np.full(11, 7.0))
    found = binned(np.ones((1, 11)), np.full(11, 7.0), edges)
    assert [line["count"] for line in found] == [11]


def test_bins_are_of_the_test_split_and_their_edges_of_the_training_split(shards, cache_root):
    manifest = Manifest.load(shards)
    bins = SplitBins.load(shards, "log_g", "test", Worker(cache_root=cache_root, device=torch.device("cpu")))
    assert list(bins.snr_edges[1:-1]) == list(manifest.snr.values())
    assert (bins.snr_edges[0], bins.snr_edges[-1]) == (bins.snr.min(), bins.snr.max())
    assert (bins.label_edges[0], bins.label_edges[-1]) == (manifest.labels["log_g"].min, manifest.labels["log_g"].max)
    assert len(bins.snr) == len(bins.labels) == 96
    assert list(label_edges(manifest.labels["log_g"])) == list(bins.label_edges)


def test_one_worker_has_all_rows():
    mine = torch.arange(10.0).reshape(2, 5)
    assert gather_rows(mine, rank=0, world=1, total=5).tolist() == mine.tolist()


def test_signal_to_noise_is_that_of_the_noise_free_flux(shards, cache_root):
    mapped = map_split(shards, "test", 96, cache_root)
    bins = SplitBins.load(shards, "log_g", "test", Worker(cache_root=cache_root, device=torch.device("cpu")))
    assert np.array_equal(bins.snr, spectrum_snr(mapped.flux, mapped.error))
