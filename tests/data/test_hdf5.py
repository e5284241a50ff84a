import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from scaling.data.describe import describe
from scaling.data.hdf5 import (
    ERROR,
    FLUX,
    PARAMS,
    WAVE,
    WAVE_PER_SPECTRUM,
    check_rows,
    fill_edges,
    open_spectra,
    spectrum_snr,
)
from scaling.data.simulate import COLUMNS, Simulation, write_simulation
from scaling.errors import UserError

REAL = Path(__file__).parents[3] / "shared" / "cases" / "pfs_writer_100.h5"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    simulation = Simulation(train=100, val=1, test=1, pixels=1024)
    return write_simulation(tmp_path_factory.mktemp("sim"), simulation)["train"][0]


@pytest.fixture
def file(source, tmp_path):
    """A copy that a test may damage."""
    return Path(shutil.copy(source, tmp_path / "dataset.h5"))


def edit(path, change):
    with h5py.File(path, "a") as opened:
        change(opened)


def test_reading_rounds_once_to_float32(file):
    with h5py.File(file) as raw, open_spectra(file) as spectra:
        flux, error = spectra.read(10, 30)
        assert flux.dtype == error.dtype == np.float32
        assert np.array_equal(flux, raw[FLUX][10:30].astype(np.float32))
        assert np.array_equal(error, raw[ERROR][10:30].astype(np.float32))
        assert list(spectra.params.columns) == list(COLUMNS)
        assert spectra.read_params(10, 30)["id"].tolist() == list(range(10, 30))


def test_edges_are_filled_from_the_neighbour(file):
    def damage(raw):
        raw[ERROR][3, 0] = raw[ERROR][4, -1] = np.nan

    edit(file, damage)
    with open_spectra(file) as spectra:
        flux, error = spectra.read(0, 100)
        assert error[3, 0] == error[3, 1]
        assert error[4, -1] == error[4, -2]
        assert spectra.filled_edges == 2
        check_rows(flux, error, file)
    assert describe(file).filled_edges == 2


def test_only_the_outermost_pixels_are_filled():
    error = np.array([[np.nan, np.nan, 1.0, 2.0]])
    assert fill_edges(error) == 1
    assert np.isnan(error[0, :2]).all()


@pytest.mark.parametrize(
    ("name", "cell", "value", "message"),
    [
        (FLUX, np.s_[5], 0.0, r"flux is 0 in every pixel \(never written\) in row 5, 1 such among rows 0 to 99"),
        (FLUX, np.s_[6:8, 9], np.inf, "flux is not finite in row 6, 2 such"),
        (FLUX, np.s_[6, 9], 1e300, "flux is not finite in row 6"),
        (ERROR, np.s_[7, 9], np.nan, r"error is not finite \(beyond the edge pixels\) in row 7"),
        (ERROR, np.s_[8, 9], 0.0, "error is 0 or negative in row 8"),
        (ERROR, np.s_[8, 9], -1.0, "error is 0 or negative in row 8"),
    ],
)
def test_unusable_rows_are_named(file, name, cell, value, message):
    def damage(raw):
        raw[name][cell] = value

    edit(file, damage)
    with open_spectra(file) as spectra, pytest.raises(UserError, match=f"{file}.*{message}"):
        check_rows(*spectra.read(0, 100), file)
    assert len(describe(file).problems) == 1


def shorten(name, cut):
    def change(raw):
        values = raw[name][:]
        del raw[name]
        raw[name] = values[cut]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.__delitem__(ERROR), f"no {ERROR}"),
        (lambda raw: (raw.__delitem__(FLUX), raw.__delitem__(WAVE)), f"no {WAVE}, {FLUX}"),
        (lambda raw: raw.__delitem__(PARAMS), f"no {PARAMS}/table"),
        (lambda raw: raw.__setitem__(WAVE_PER_SPECTRUM, np.ones((100, 1024))), "a wavelength grid for each spectrum"),
        (shorten(ERROR, np.s_[:99]), r"flux is \(100, 1024\) and error is \(99, 1024\)"),
        (shorten(WAVE, np.s_[:1000]), rf"{WAVE} is \(1000,\)"),
        (shorten(WAVE, np.s_[::-1]), "does not increase"),
        (shorten(f"{PARAMS}/table", np.s_[:90]), r"table is \(90,\)"),
    ],
)
def test_another_layout_is_refused(file, change, message):
    edit(file, change)
    with pytest.raises(UserError, match=message) as raised:
        open_spectra(file)
    assert str(file) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_is_not_a_file_of_spectra_is_refused(file, tmp_path):
    with pytest.raises(UserError, match="is a folder"):
        open_spectra(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        open_spectra(tmp_path / "absent.h5")
    file.write_bytes(file.read_bytes()[:100_000])
    with pytest.raises(UserError, match="not an HDF5 file, or is cut short"):
        open_spectra(file)
    file.write_text("text")
    with pytest.raises(UserError, match="not an HDF5 file"):
        open_spectra(file)


def test_the_fingerprint_follows_the_content(file, source, tmp_path):
    def fingerprint(path):
        with open_spectra(path) as spectra:
            return spectra.fingerprint()

    assert fingerprint(file) == fingerprint(source)

    def damage(raw):
        raw[FLUX][0, 0] += 1e-9

    edit(file, damage)
    assert fingerprint(file) != fingerprint(source)


def test_description(source):
    found = describe(source)
    assert (found.rows, found.pixels, found.checked_rows, found.problems) == (100, 1024, 100, [])
    columns = {column.name: column for column in found.columns}
    assert list(columns) == list(COLUMNS)
    assert columns["L_H"].nan == 100
    assert columns["L_H"].min is columns["interp_param"].min is None
    assert columns["id"].max == 99
    with open_spectra(source) as spectra:
        snr = spectrum_snr(*spectra.read(0, 100))
        np.testing.assert_allclose(snr, spectra.params["snr"], rtol=1e-5)
    assert found.snr["50"] == pytest.approx(np.median(snr))
    assert "no problems found" in found.to_text()


def test_a_large_file_is_sampled_to_its_last_row(file):
    def damage(raw):
        raw[FLUX][99] = 0.0

    edit(file, damage)
    found = describe(file, max_rows=32)
    assert found.checked_rows == 32
    assert len(found.problems) == 1
    assert "PROBLEM: flux is 0 in every pixel" in found.to_text()


@pytest.mark.skipif(not REAL.exists(), reason="the real writer's file is not here")
def test_a_file_of_the_real_writer():
    with open_spectra(REAL) as spectra:
        assert (spectra.num_rows, spectra.num_pixels) == (100, 4096)
        flux, error = spectra.read(0, 100)
        rows, pixels = np.arange(100)[:, None], np.arange(4096)
        np.testing.assert_allclose(flux, np.round(0.5 + 0.02 * np.sin(pixels / 50 + rows), 3), atol=1e-3)
        np.testing.assert_allclose(error, np.round(0.08 + 0.02 * np.cos(pixels / 80 + rows), 3), atol=1e-3)
        assert list(spectra.params.columns) == list(COLUMNS)
        assert spectra.wave[[0, -1]] == pytest.approx([7100.2136, 8849.7864], abs=1e-3)
    assert describe(REAL).problems == []
