"""Files that are not in the layout, and rows that cannot be trained on, are refused in one line."""

import numpy as np
import pytest

from scaling.data.hdf5.reader import ERROR_ARRAY, FLUX_ARRAY, PARAMS, WAVE, WAVE_PER_SPECTRUM, open_spectra
from scaling.data.spectra import check_rows
from scaling.errors import UserError
from tests.data.hdf5.editing import edit, shorten


@pytest.mark.parametrize(
    ("name", "cell", "value", "message"),
    [
        (FLUX_ARRAY, np.s_[5], 0.0, r"flux is 0 in every pixel \(never written\) in row 5, 1 such among rows 0 to 99"),
        (FLUX_ARRAY, np.s_[6:8, 9], np.inf, "flux is not finite in row 6, 2 such"),
        (FLUX_ARRAY, np.s_[6, 9], 1e300, "flux is not finite in row 6"),
        (ERROR_ARRAY, np.s_[7, 9], np.nan, r"error is not finite \(beyond the edge pixels\) in row 7"),
        (ERROR_ARRAY, np.s_[8, 9], 0.0, "error is 0 or negative in row 8"),
        (ERROR_ARRAY, np.s_[8, 9], -1.0, "error is 0 or negative in row 8"),
        (ERROR_ARRAY, np.s_[9], 1e-40, r"SNR is not finite \(the error is too small\) in row 9, 1 such"),
    ],
)
def test_unusable_rows_are_named(file, name, cell, value, message):
    def damage(raw):
        raw[name][cell] = value

    edit(file, damage)
    with open_spectra(file) as spectra, pytest.raises(UserError, match=f"{file}.*{message}"):
        check_rows(*spectra.read(0, 100), file)


def test_an_snr_that_overflows_in_few_pixels_is_no_fault(file):
    edit(file, lambda raw: raw[ERROR_ARRAY].__setitem__((9, slice(0, 40)), 1e-40))
    with open_spectra(file) as spectra:
        check_rows(*spectra.read(0, 100), file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.__delitem__(ERROR_ARRAY), f"no {ERROR_ARRAY}"),
        (lambda raw: (raw.__delitem__(FLUX_ARRAY), raw.__delitem__(WAVE)), f"no {WAVE}, {FLUX_ARRAY}"),
        (lambda raw: raw.__delitem__(PARAMS), f"no {PARAMS}/table"),
        (lambda raw: raw.__setitem__(WAVE_PER_SPECTRUM, np.ones((100, 1024))), "each spectrum has a grid"),
        (shorten(ERROR_ARRAY, np.s_[:99]), r"flux is \(100, 1024\) and error is \(99, 1024\)"),
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
