"""What is simulated: labels, spectra and their noise, whichever rows are asked for together."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.data.simulated.emulator import emulate_flux, load_emulator, polynomial_terms
from scaling.data.simulated.rows import BLOCK_ROWS, LABELS, Simulation, simulate_rows

SMALL = Simulation(train=300, val=64, test=70, pixels=1024, train_files=2)


@pytest.fixture(scope="module")
def published():
    """Enough default spectra at full resolution for percentiles to a few per cent."""
    pieces = [simulate_rows(Simulation(), "train", start, start + 256).params for start in range(0, 4096, 256)]
    return pd.concat(pieces, ignore_index=True)


def test_snr_is_distributed_as_the_real_set_is(published):
    percentiles = np.percentile(published["snr"], [5, 25, 50, 75, 95])
    np.testing.assert_allclose(percentiles, [3.7, 5.4, 8.4, 12.7, 17.5], rtol=0.04)


def test_labels_are_distributed_as_the_real_set_is(published):
    log_g = published["log_g"]
    assert log_g.mean() == pytest.approx(3.0, abs=0.08)
    assert log_g.std() == pytest.approx(1.2, abs=0.05)
    assert (log_g % 0.5 == 0).mean() == pytest.approx(0.8, abs=0.03)
    assert published["T_eff"].between(3750, 6000).all()
    assert published["M_H"].between(-2.5, 0.5).all()
    steps = dict(zip(LABELS, (250, 0.5, 0.25, 0.25, 0.25), strict=True))
    for name, step in steps.items():
        snapped = published.loc[published["interp_param"] != name, name]
        assert (snapped % step == 0).all()
        assert not (published.loc[published["interp_param"] == name, name] % step == 0).any()


def test_snr_column_is_of_the_written_pixels():
    for pixels in (4096, 1024):
        rows = simulate_rows(Simulation(pixels=pixels), "val", 0, 8)
        expected = np.percentile(rows.flux / rows.error, 95, axis=1, method="nearest")
        np.testing.assert_allclose(rows.params["snr"], expected, rtol=1e-6)


@pytest.fixture(scope="module")
def whole():
    return simulate_rows(Simulation(pixels=1024), "train", 0, 3 * BLOCK_ROWS)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_a_row_does_not_depend_on_its_chunk(whole, data):
    start = data.draw(st.integers(0, 3 * BLOCK_ROWS - 1))
    stop = data.draw(st.integers(start + 1, 3 * BLOCK_ROWS))
    part = simulate_rows(Simulation(pixels=1024), "train", start, stop)
    assert np.array_equal(part.flux, whole.flux[start:stop])
    assert np.array_equal(part.error, whole.error[start:stop])
    pd.testing.assert_frame_equal(part.params, whole.params[start:stop].reset_index(drop=True), check_exact=True)


def test_a_row_depends_on_seed_split_and_row_only():
    first = simulate_rows(Simulation(train=100, seed=3), "train", 7, 8).flux
    assert np.array_equal(first, simulate_rows(Simulation(train=5000, seed=3, test=9), "train", 7, 8).flux)
    for other in (
        simulate_rows(Simulation(seed=4), "train", 7, 8),
        simulate_rows(Simulation(seed=3), "val", 7, 8),
        simulate_rows(Simulation(seed=3), "train", 8, 9),
    ):
        assert not np.array_equal(first, other.flux)


def test_binning_averages_flux_and_propagates_errors():
    full = simulate_rows(Simulation(), "test", 0, 5)
    binned = simulate_rows(Simulation(pixels=1024), "test", 0, 5)
    np.testing.assert_allclose(binned.flux, full.flux.reshape(5, 1024, 4).mean(axis=2))
    np.testing.assert_allclose(binned.error, np.sqrt((full.error.reshape(5, 1024, 4) ** 2).sum(axis=2)) / 4)


def test_brightness_scales_the_noise():
    faint, bright = (simulate_rows(Simulation(mag_range=mags), "train", 0, 64) for mags in ((20.5, 22.5), (17.5, 19.5)))
    assert np.array_equal(faint.flux, bright.flux)
    assert (bright.error < faint.error).all()


def test_polynomial_terms_are_the_stated_monomials():
    a, b, c = 2.0, 3.0, 5.0
    expected = [1, a, b, c, a * a, a * b, a * c, b * b, b * c, c * c]
    expected += [a**3, a * a * b, a * a * c, a * b * b, a * b * c, a * c * c, b**3, b * b * c, b * c * c, c**3]
    assert polynomial_terms(np.array([[a, b, c]])).tolist() == [expected]


def test_the_emulator_covers_the_pfs_grid():
    emulator = load_emulator()
    np.testing.assert_allclose(emulator.wave_edges, np.linspace(7100, 8850, 4097), rtol=1e-12)
    assert np.median(emulate_flux(np.array([[5000.0, 3.0, -1.0]]))) == pytest.approx(0.5, abs=0.01)
