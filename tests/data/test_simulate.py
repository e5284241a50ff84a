import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.data.emulator import emulate_flux, load_emulator, polynomial_terms
from scaling.data.hdf5 import FLUX, MASK, open_spectra
from scaling.data.simulate import BLOCK_ROWS, COLUMNS, LABELS, Simulation, simulate_rows, write_simulation
from scaling.errors import UserError

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


def test_files_have_the_layout_of_real_ones(tmp_path):
    paths = write_simulation(tmp_path, SMALL)
    names = [[path.parent.name for path in paths[split]] for split in ("train", "val", "test")]
    assert names == [["train_0", "train_1"], ["val"], ["test"]]
    frames = [pd.read_hdf(path) for path in paths["train"]]
    assert [list(frame.columns) for frame in frames] == [list(COLUMNS)] * 2
    assert pd.concat(frames)["id"].tolist() == list(range(300))
    assert frames[0]["id"].dtype == frames[0]["exp_count"].dtype == np.int64
    expected = simulate_rows(SMALL, "train", 150, 300)
    pd.testing.assert_frame_equal(frames[1], expected.params, check_exact=True)
    with h5py.File(paths["train"][1]) as file:
        assert file[FLUX].dtype == file["spectrumdataset/wave"].dtype == np.float64
        assert file[MASK].dtype == np.int64
        assert not file[MASK][:].any()
        assert file["spectrumdataset/wave_edges"].shape == (1025,)
        assert np.array_equal(file[FLUX][:], expected.flux)
        fields = file["dataset/params/table"].dtype.fields
        blocks = {
            field.base.str: field.shape for name, (field, _) in fields.items() if name.startswith("values_block_")
        }
        assert blocks == {"<f8": (32,), "<i8": (2,), "|S5": (1,)}
    assert list(tmp_path.rglob("*.tmp")) == []


@pytest.mark.parametrize(
    ("rows", "chunks"), [(256, None), (257, (64, 4096)), (1025, (1025, 4096)), (65537, (4096, 4096))]
)
def test_chunks_follow_the_real_writers_rule(rows, chunks):
    from scaling.data.hdf5 import _chunk_shape

    assert _chunk_shape(rows, 4096) == chunks


def test_writing_again_keeps_what_is_there(tmp_path):
    paths = write_simulation(tmp_path, SMALL)
    before = {path: path.stat().st_mtime_ns for files in paths.values() for path in files}
    calls = []
    paths["val"][0].unlink()
    write_simulation(tmp_path, SMALL, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(434, 434)]
    after = {path: path.stat().st_mtime_ns for path in before}
    assert {path for path in before if before[path] != after[path]} == {paths["val"][0]}


def test_other_files_are_not_overwritten(tmp_path):
    paths = write_simulation(tmp_path, SMALL)
    with pytest.raises(UserError, match=r"train_0/dataset\.h5 holds another simulation"):
        write_simulation(tmp_path, Simulation(train=300, val=64, test=70, pixels=1024, train_files=2, seed=1))
    with h5py.File(paths["train"][0], "a") as file:
        del file.attrs["simulation"]
    with pytest.raises(UserError, match="was not written by"):
        write_simulation(tmp_path, SMALL)


def test_an_interrupted_file_leaves_nothing(tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_simulation(tmp_path, SMALL, progress=stop)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("train", 0),
        ("seed", -1),
        ("pixels", 1000),
        ("mag_range", (22.5, 20.5)),
        ("mag_range", (20.0, float("nan"))),
        ("train_files", 0),
    ],
)
def test_fields_are_checked(field, value):
    with pytest.raises(UserError, match=rf"Simulation\.{field} is .*: give"):
        Simulation(**{field: value})


def test_simulated_files_open(tmp_path):
    paths = write_simulation(tmp_path, SMALL)
    with open_spectra(paths["test"][0]) as spectra:
        assert (spectra.num_rows, spectra.num_pixels, spectra.chunk_rows) == (70, 1024, 1)
