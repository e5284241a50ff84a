import json
import shutil

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from scaling.__main__ import main
from scaling.data.information import information_limit
from scaling.data.information.fisher import cramer_rao, fisher_information
from scaling.data.simulated.derivatives import FREE_LABELS, LOW, SPAN, flux_derivatives
from scaling.data.simulated.emulator import emulate_flux
from scaling.data.simulated.rows import Simulation, simulate_rows
from scaling.errors import UserError
from scaling.folder import Folder

PIXELS = 1024
LOG_G = FREE_LABELS.index("log_g")


def simulated(rows, mag, seed=2):
    """Labels, flux and error of some simulated spectra, all of one magnitude."""
    simulation = Simulation(train=1, val=1, test=rows, pixels=PIXELS, mag_range=(mag, mag), seed=seed)
    found = simulate_rows(simulation, "test", 0, rows)
    return found.params[list(FREE_LABELS)].to_numpy(float), found.flux, found.error


def flux_of(labels):
    return emulate_flux(labels).reshape(len(labels), PIXELS, -1).mean(axis=2)


def test_derivatives_do_not_depend_on_the_step():
    labels, *_ = simulated(32, 20.0)
    small, large = (flux_derivatives(labels, PIXELS, step) for step in (0.001, 0.2))
    assert np.abs(small - large).max() < 1e-9 * np.abs(large).max()


def test_derivatives_predict_small_changes():
    labels, flux, _ = simulated(32, 20.0)
    change = np.array([3e-4, -2e-4, 1e-4])
    predicted = np.einsum("rlp,l->rp", flux_derivatives(labels, PIXELS), change)
    assert np.allclose(flux_of(labels + change * SPAN) - flux, predicted, atol=2e-3 * np.abs(predicted).max())


def test_fisher_information_of_a_line_is_that_of_its_regression():
    x, sigma = np.linspace(-1, 1, 21), np.linspace(1, 2, 21)
    design = np.stack([np.ones_like(x), x])
    found = cramer_rao(fisher_information(design[None], sigma[None]))[0]
    covariance = np.linalg.inv(design / sigma**2 @ design.T)
    assert np.allclose(found, np.sqrt(np.diag(covariance)))


@given(arrays.arrays(float, (4, 3, 12), elements=st.floats(-1, 1)), st.floats(0.05, 20))
def test_other_unknowns_never_help_and_a_prior_never_hurts(derivatives, noise):
    derivatives[:, range(3), range(3)] += 5.0  # three pixels that tell the labels apart
    fisher = fisher_information(derivatives, np.full((4, 12), noise))
    plain, bounded = cramer_rao(fisher), cramer_rao(fisher, 1 / 12)
    alone = 1 / np.sqrt(np.diagonal(fisher, axis1=1, axis2=2))
    assert (plain >= alone * (1 - 1e-9)).all()
    assert (bounded <= plain * (1 + 1e-9)).all()
    assert (bounded <= np.sqrt(1 / 12) * (1 + 1e-9)).all()
    assert np.allclose(cramer_rao(fisher, 1e12), plain, rtol=1e-6)


def test_maximum_likelihood_reaches_the_limit():
    stars, draws = 4, 250
    labels, flux, error = (np.repeat(found, draws, axis=0) for found in simulated(stars, 15.0))
    noisy = flux + error * np.random.default_rng(0).standard_normal(flux.shape)
    sigma = SPAN * cramer_rao(fisher_information(flux_derivatives(labels, PIXELS), error))
    found = labels.copy()
    for _ in range(3):  # Gauss–Newton, which maximises the likelihood
        weighted = flux_derivatives(found, PIXELS) / error[:, None]
        gradient = np.einsum("rlp,rp->rl", weighted, (noisy - flux_of(found)) / error)
        found = found + SPAN * np.linalg.solve(weighted @ weighted.transpose(0, 2, 1), gradient[..., None])[..., 0]
    z = (found - labels) / sigma
    count = len(z)
    assert np.abs(z.mean(axis=0)).max() < 4 / count**0.5
    assert np.abs((z**2).mean(axis=0) - 1).max() < 4 * (2 / count) ** 0.5
    absolute = np.abs(z[:, LOG_G]).mean()
    assert absolute == pytest.approx((2 / np.pi) ** 0.5, abs=4 * 0.603 / count**0.5)


@pytest.mark.parametrize(("mag", "low", "high"), [(17.0, 0.94, 1.05), (21.0, 0.94, 1.05), (23.0, 1.0, 1.2)])
def test_a_posterior_on_a_grid_reaches_the_limit_of_one_label(mag, low, high):
    """All other labels known. Beyond sigma of about 0.5 dex the flux is no longer linear, and the limit is out of reach."""
    rows = 2000
    _, _, error = simulated(1, mag)
    rng = np.random.default_rng(1)
    truth, grid = rng.uniform(1, 5, rows), np.linspace(1, 5, 2001)

    def spectra(log_g):
        return flux_of(np.stack([np.full_like(log_g, 4500.0), log_g, np.full_like(log_g, -1.0)], axis=1))

    models = spectra(grid)
    noisy = spectra(truth) + error * rng.standard_normal((rows, PIXELS))
    likelihood = (noisy / error**2) @ models.T - 0.5 * (models**2 / error**2).sum(axis=1)
    posterior = np.exp(likelihood - likelihood.max(axis=1, keepdims=True))
    below = np.cumsum(posterior, axis=1) / posterior.sum(axis=1, keepdims=True)
    median = grid[(below >= 0.5).argmax(axis=1)]

    labels = np.stack([np.full(rows, 4500.0), truth, np.full(rows, -1.0)], axis=1)
    derivative = flux_derivatives(labels, PIXELS)[:, [LOG_G]]
    sigma = SPAN[LOG_G] * cramer_rao(fisher_information(derivative, np.repeat(error, rows, axis=0)), 1 / 12)[:, 0]
    ratio = np.abs(median - truth).mean() / ((2 / np.pi) ** 0.5 * sigma.mean())
    assert low < ratio < high


def test_the_limit_of_a_test_split_by_signal_to_noise(shards):
    limit = information_limit(shards)
    file = information_limit(shards.parent / "hdf5" / "test" / "dataset.h5")
    assert limit.mae_dex == pytest.approx(file.mae_dex, rel=1e-5)
    assert (limit.rows, limit.num_rows) == (96, 96)
    assert sum(line["count"] for line in limit.by_snr) == 96
    assert sum(line["count"] * line["mae_dex"] for line in limit.by_snr) / 96 == pytest.approx(limit.mae_dex)
    assert limit.by_snr[-1]["mae_dex"] < limit.by_snr[0]["mae_dex"] < limit.guess_mae_dex
    assert 0 < limit.mae_dex <= limit.mae_without_prior_dex
    assert limit.mae_dex < (2 / np.pi) ** 0.5 * limit.rmse_dex
    assert 0.9 < limit.r2 < 1
    assert limit.prior["log_g"] == [1.0, 5.0]
    fewer = information_limit(shards, rows=10)
    assert (fewer.rows, fewer.num_rows) == (10, 96)


def test_a_shard_set_at_a_uri_has_the_same_limit(shards, s3_server):
    there = Folder.at(s3_server("limit/shards"))
    for file in shards.rglob("*"):
        if file.is_file():
            there.write(str(file.relative_to(shards)), file.read_bytes())
    assert information_limit(there.uri) == information_limit(shards.as_uri()) == information_limit(shards)


def test_noise_scales_the_plain_limit_and_never_beats_the_prior(shards):
    once, thrice, much = (information_limit(shards, noise_level=level) for level in (1.0, 3.0, 1e4))
    assert thrice.mae_without_prior_dex == pytest.approx(3 * once.mae_without_prior_dex)
    assert once.mae_dex < thrice.mae_dex < 3 * once.mae_dex
    assert much.rmse_dex == pytest.approx(4 / 12**0.5, rel=1e-3)


@settings(max_examples=3, deadline=None)
@given(st.sampled_from(FREE_LABELS))
def test_every_label_that_the_flux_depends_on_has_a_limit(shards, label):
    limit = information_limit(shards, label=label)
    span = SPAN[FREE_LABELS.index(label)]
    assert 0 < limit.mae_dex < limit.guess_mae_dex < span / 2
    assert limit.prior[label][0] == LOW[FREE_LABELS.index(label)]


def test_spectra_of_another_generator_among_simulated_ones_are_refused(shards, tmp_path):
    path = tmp_path / "dataset.h5"
    shutil.copy(shards.parent / "hdf5" / "test" / "dataset.h5", path)
    with h5py.File(path, "r+") as file:
        file["dataset/arrays/flux/value"][80:, 7] += 1e-4
    with pytest.raises(
        UserError, match="some spectra are what this package simulates for their labels, and others are not"
    ):
        information_limit(path)


@pytest.mark.parametrize("changes", [{"label": "a_M"}, {"rows": 0}, {"noise_level": -2.5}])
def test_arguments_out_of_range_are_named(shards, changes):
    with pytest.raises(UserError, match="|".join(map(str, changes.values()))):
        information_limit(shards, **changes)


def test_the_command_prints_and_writes_the_limit(shards, tmp_path, capsys):
    out = tmp_path / "limit.json"
    assert main(["limit", str(shards), "--label", "M_H", "--json", str(out)]) == 0
    assert "information limit of M_H, 96 of 96 spectra" in capsys.readouterr().out
    assert json.loads(out.read_text()) == information_limit(shards, label="M_H").to_json()
    assert main(["limit", str(tmp_path)]) == 2
    assert "manifest.json" in capsys.readouterr().err


@pytest.mark.parametrize("mag", [20.5, 22.0])
def test_the_best_estimator_of_all_comes_close_to_the_limit_and_none_passes_it(mag):
    """The posterior's median, exact on a grid of all labels, has the least mean absolute error that there is."""
    labels, flux, error = simulated(300, mag)
    noisy = flux + error * np.random.default_rng(1).standard_normal(flux.shape)
    counts = (24, 48, 24)
    edges = [LOW[k] + SPAN[k] * np.arange(count + 1) / count for k, count in enumerate(counts)]
    middles = np.meshgrid(*((each[1:] + each[:-1]) / 2 for each in edges), indexing="ij")
    grid = flux_of(np.stack(middles, axis=-1).reshape(-1, 3)).astype(np.float32)
    weight = (error**-2.0).astype(np.float32)
    logs = (noisy * weight).astype(np.float32) @ grid.T - 0.5 * weight @ (grid**2).T
    posterior = np.exp(np.float64(logs - logs.max(axis=1, keepdims=True))).reshape(-1, *counts).sum(axis=(1, 3))
    below = np.pad(np.cumsum(posterior, axis=1), ((0, 0), (1, 0))) / posterior.sum(axis=1, keepdims=True)
    median = np.array([np.interp(0.5, each, edges[LOG_G]) for each in below])
    missed = np.abs(median - labels[:, LOG_G])
    fisher = fisher_information(flux_derivatives(labels, PIXELS), error)
    limit = np.sqrt(2 / np.pi) * SPAN[LOG_G] * cramer_rao(fisher, 1 / 12)[:, LOG_G].mean()
    sem = missed.std() / np.sqrt(len(missed))
    assert limit - 2 * sem < missed.mean() < 1.1 * limit + 2 * sem
