"""The limit of spectra of any origin: derivatives by an emulator, tested on spectra left out, and refused where it is poor."""

import json
import shutil

import h5py
import numpy as np
import pytest

from scaling.__main__ import main
from scaling.data.information import information_limit
from scaling.data.information.emulator import Emulator, best_emulator
from scaling.data.information.fisher import cramer_rao, fisher_information
from scaling.data.shards.convert import convert
from scaling.data.simulated.writer import Simulation, write_simulation
from scaling.errors import UserError
from tests.data.shards.converting import contents

LOW, SPAN = np.array([3750.0, 1.0, -2.5]), np.array([2250.0, 4.0, 3.25])
PIXELS = np.linspace(-1, 1, 300)


def lines(labels):
    """Saturated absorption lines whose depths and widths depend on the labels: no polynomial."""
    x = (labels - LOW) / SPAN
    centres = np.linspace(-0.9, 0.9, 7)[:, None]
    widths = 0.02 * (1 + x[:, 1, None, None])
    strength = np.exp(1.5 * x[:, 2] - 2 * x[:, 0])[:, None, None] * np.linspace(0.3, 1.5, 7)[:, None]
    profile = np.exp(-(((PIXELS - centres) / widths) ** 2))
    return np.exp(-strength * profile).prod(axis=1)


def drawn(rows, seed=0):
    labels = LOW + SPAN * np.random.default_rng(seed).random((rows, 3))
    labels[:, 1] = np.where(labels[:, 0] > 4500, np.round(2 * labels[:, 1]) / 2, labels[:, 1])  # most on a grid
    return labels, lines(labels)


def exact_derivatives(labels, step=1e-4):
    slopes = [(lines(labels + step * by) - lines(labels - step * by)) / (2 * step) for by in np.diag(SPAN)]
    return np.stack(slopes, axis=1)


def test_derivatives_are_those_of_its_flux():
    labels, flux = drawn(800)
    emulator = Emulator.fit(labels, flux, LOW, SPAN, 4)
    found = emulator.derivatives(labels[:20])
    for by, direction in enumerate(np.diag(SPAN)):
        slope = (emulator.flux(labels[:20] + 1e-5 * direction) - emulator.flux(labels[:20] - 1e-5 * direction)) / 2e-5
        assert np.allclose(found[:, by], slope, atol=1e-6 * np.abs(found).max())


def test_its_limit_is_within_a_tenth_of_the_exact_one():
    labels, flux = drawn(4000)
    sigma = np.full(flux.shape, 0.1)
    found = best_emulator(labels, flux.astype(np.float32), sigma.astype(np.float32), 1, LOW, SPAN)
    some, _ = drawn(300, seed=1)
    exact = cramer_rao(fisher_information(exact_derivatives(some), sigma[:300]), 1 / 12)[:, 1]
    ours = cramer_rao(fisher_information(found.emulator.derivatives(some), sigma[:300]), 1 / 12)[:, 1]
    assert ours.mean() == pytest.approx(exact.mean(), rel=0.05)
    assert found.shift < 0.3
    assert 0 < found.doubt < 0.1


def test_more_spectra_allow_a_better_one_and_bright_spectra_ask_for_it():
    def shift(rows, noise):
        labels, flux = drawn(rows)
        sigma = np.full(flux.shape, noise, np.float32)
        return best_emulator(labels, flux.astype(np.float32), sigma, 1, LOW, SPAN).shift

    assert shift(4000, 0.1) < shift(200, 0.1)
    assert shift(4000, 0.01) > 3 * shift(4000, 0.1)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """A shard set of simulated spectra whose flux was bent, so that no one knows their generator."""
    root = tmp_path_factory.mktemp("foreign")
    files = write_simulation(root / "hdf5", Simulation(train=1500, val=8, test=64, pixels=1024, mag_range=(20.0, 20.0)))
    for paths in files.values():
        for path in paths:
            with h5py.File(path, "r+") as file:
                flux = file["dataset/arrays/flux/value"]
                flux[:] = 0.5 * np.tanh(2 * flux[:])
    convert(root / "shards", **files, rows_per_shard=512, on_ray=False)
    return root / "shards"


def test_the_limit_of_spectra_of_any_origin_says_what_its_emulator_is_worth(foreign, tmp_path, capsys):
    before, out = contents(foreign), tmp_path / "limit.json"
    assert main(["limit", str(foreign), "--free", "T_eff,log_g,M_H", "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert "polynomial of degree" in found["assumes"]
    assert "fitted to 1,200 spectra; on 300 left out" in capsys.readouterr().out
    assert sorted(found["prior"]) == ["M_H", "T_eff", "log_g"]
    assert found["mae_dex"] < found["guess_mae_dex"]
    assert contents(foreign) == before


def test_simulated_spectra_have_the_same_limit_by_either_way(shards):
    exact, emulated = (information_limit(shards, free=free) for free in ((), ("T_eff", "log_g", "M_H")))
    assert emulated.mae_dex == pytest.approx(exact.mae_dex, rel=0.1)
    assert "generator" in exact.assumes


def test_a_poor_emulator_is_refused(foreign):
    with pytest.raises(UserError, match=r"misses the flux of 300 spectra left out by what moves log_g by .* --free"):
        information_limit(foreign, free=("log_g", "M_H"))  # of T_eff it knows nothing


@pytest.mark.parametrize(
    ("free", "words"),
    [
        (("T_eff", "M_H"), "log_g among them"),
        (("log_g", "nosuch"), "no label nosuch; there are"),
        (("log_g", "redshift"), "each finite and not constant"),
        (("log_g", "M_H", "log_g"), "--free log_g,M_H,log_g: names a label twice"),
    ],
)
def test_labels_that_cannot_be_are_named(foreign, free, words):
    with pytest.raises(UserError, match=words):
        information_limit(foreign, free=free)


def test_too_few_spectra_are_refused(shards, tmp_path):
    path = tmp_path / "dataset.h5"
    shutil.copy(shards.parent / "hdf5" / "test" / "dataset.h5", path)
    with h5py.File(path, "r+") as file:
        file["dataset/arrays/flux/value"][:, 7] += 1e-4
    with pytest.raises(UserError, match="96 spectra are too few to fit an emulator of 5 labels to"):
        information_limit(path)
