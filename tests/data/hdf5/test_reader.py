import os
import shutil
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.data.hdf5.reader import ERROR_ARRAY, FLUX_ARRAY, MASK_ARRAY, PARAMS, open_spectra
from scaling.data.simulated.rows import COLUMNS
from scaling.data.spectra import check_rows, fill_edges
from scaling.errors import UserError
from tests.data.hdf5.editing import edit, shorten

REAL = Path(__file__).parents[4] / "shared" / "cases" / "pfs_writer_100.h5"


LAYOUTS = {
    "contiguous": {},
    "64 rows": {"chunks": (64, 1024)},
    "all rows": {"chunks": (100, 1024)},
    "more than all rows": {"chunks": (4096, 1024), "maxshape": (None, 1024)},
    "gzip": {"chunks": (64, 1024), "compression": "gzip", "compression_opts": 1},
    "lzf, and cut across": {"chunks": (30, 500), "compression": "lzf"},
    "float32": {"dtype": "f4"},
    "big-endian": {"dtype": ">f8"},
}


def store_as(raw, **layout):
    """Store flux and error of a file in another way."""
    for name in (FLUX_ARRAY, ERROR_ARRAY):
        values = raw[name][:]
        del raw[name]
        raw.create_dataset(name, data=values, **layout)


def as_fixed(path):
    """Write a file's parameters as `to_hdf` does by default."""
    params = pd.read_hdf(path)
    with h5py.File(path, "a") as raw:
        del raw[PARAMS]
    with warnings.catch_warnings(action="ignore"):  # pandas warns that it pickles text
        params.to_hdf(path, key=PARAMS)


def test_reading_rounds_once_to_float32(file):
    with h5py.File(file) as raw, open_spectra(file) as spectra:
        flux, error = spectra.read(10, 30)
        assert flux.dtype == error.dtype == np.float32
        assert np.array_equal(flux, raw[FLUX_ARRAY][10:30].astype(np.float32))
        assert np.array_equal(error, raw[ERROR_ARRAY][10:30].astype(np.float32))
        assert list(spectra.params.columns) == list(COLUMNS)
        assert spectra.read_params(10, 30)["id"].tolist() == list(range(10, 30))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_every_way_of_storage_reads_alike(source, file, layout):
    edit(file, lambda raw: store_as(raw, **layout))
    with open_spectra(source) as plain, open_spectra(file) as stored:
        assert stored.chunk_rows == layout.get("chunks", (1,))[0]
        expected, found = plain.read(3, 97), stored.read(3, 97)
        assert np.array_equal(found, expected)
        assert np.array_equal(stored.wave, plain.wave)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_blocks_are_the_rows_in_order_and_the_callers_to_keep(source, data):
    start = data.draw(st.integers(0, 100))
    stop = data.draw(st.integers(start, 100))
    rows = data.draw(st.integers(1, 120))
    with open_spectra(source) as spectra:
        blocks = list(spectra.blocks(start, stop, rows))
        assert [first for first, _, _ in blocks] == list(range(start, stop, rows))
        assert all(flux.dtype == error.dtype == np.float32 for _, flux, error in blocks)
        flux, error = spectra.read(start, stop)
        if blocks:
            assert np.array_equal(np.concatenate([block for _, block, _ in blocks]), flux)
            assert np.array_equal(np.concatenate([block for _, _, block in blocks]), error)
        assert len(flux) == len(error) == stop - start


@pytest.fixture(scope="module")
def stored(source, tmp_path_factory):
    """The file in every way of storage, with NaN errors at edges of some rows."""
    files = {}
    for name, layout in LAYOUTS.items():
        files[name] = shutil.copy(source, tmp_path_factory.mktemp("stored") / "dataset.h5")
        edit(files[name], lambda raw: raw[ERROR_ARRAY].__setitem__((slice(0, 100, 3), 0), np.nan))
        edit(files[name], lambda raw, layout=layout: store_as(raw, **layout))
    return files


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=20, deadline=None)
@given(rows=st.lists(st.integers(0, 99), max_size=40), fill=st.booleans())
def test_rows_in_any_order_are_those_read_in_order(stored, layout, rows, fill):
    with open_spectra(stored[layout]) as spectra:
        rows = np.array(rows, np.int64)
        whole = spectra.read(0, 100) if fill else next(spectra.blocks(0, 100, 100, fill=False))[1:]
        spectra.filled_edges = 0
        found = spectra.read_rows(rows, fill=fill)
        assert all(values.dtype == np.float32 for values in found)
        assert all(
            np.array_equal(one, all_rows[rows], equal_nan=True) for one, all_rows in zip(found, whole, strict=True)
        )
        assert spectra.filled_edges == (len({row for row in rows.tolist() if row % 3 == 0}) if fill else 0)
        expected = spectra.params.iloc[rows].reset_index(drop=True)
        pd.testing.assert_frame_equal(spectra.params_rows(rows), expected)


def test_parameters_in_any_order_are_read_range_by_range(source, monkeypatch):
    monkeypatch.setattr("scaling.data.hdf5.reader.TABLE_ROWS", 7)
    with open_spectra(source) as spectra:
        assert spectra.params_rows(np.array([99, 0, 7, 6, 0]))["id"].tolist() == [99, 0, 7, 6, 0]


def test_threads_read_parameters_one_at_a_time(source, monkeypatch):
    """PyTables is not thread-safe."""
    inside, most, read = [], [], pd.read_hdf

    def spy(*arguments, **options):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.01)
        found = read(*arguments, **options)
        inside.pop()
        return found

    def ask(row):
        with open_spectra(source) as spectra:
            return spectra.params_rows(np.array([row]))["id"].tolist()

    monkeypatch.setattr(pd, "read_hdf", spy)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(8))) == [[row] for row in range(8)]
    assert max(most) == 1


@pytest.mark.parametrize("rows", [[100], [-1], [5, 100]])
def test_rows_that_are_not_there_are_not_read(source, rows):
    with open_spectra(source) as spectra, pytest.raises(ValueError, match="has 100"):
        spectra.read_rows(np.array(rows))


@pytest.mark.parametrize("layout", ["contiguous", "64 rows", "gzip"])
def test_the_disk_is_asked_for_exactly_the_rows_before_they_are_read(stored, layout, monkeypatch):
    asked = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _, offset, length, advice: asked.append((offset, length)))
    with open_spectra(stored[layout]) as spectra, h5py.File(stored[layout]) as raw:
        spectra.read_rows(np.array([70, 3, 4, 3, 99]))
        for name in (FLUX_ARRAY, ERROR_ARRAY):
            array = raw[name]
            for first, last in ((3, 5), (70, 71), (99, 100)):
                if layout == "gzip":
                    chunk = array.id.get_chunk_info_by_coord((first, 0))
                    expected = (chunk.byte_offset, chunk.size)
                else:
                    chunk = array.chunks and array.id.get_chunk_info_by_coord((first, 0))
                    begin = chunk.byte_offset - first // 64 * 64 * 8192 if chunk else array.id.get_offset()
                    expected = (begin + first * 8192, (last - first) * 8192)
                assert asked.count(expected) == 1
    assert len(asked) == (4 if layout == "gzip" else 6)


def test_a_compressed_chunk_is_decoded_once(file):
    """Reading in ten blocks costs about what reading at once does, although all rows are in one compressed chunk."""
    edit(file, lambda raw: store_as(raw, chunks=(2048, 1024), maxshape=(None, 1024), compression="gzip"))

    def seconds(rows):
        with open_spectra(file) as spectra:
            begin = time.process_time()
            list(spectra.blocks(0, 100, rows))
            return time.process_time() - begin

    assert min(seconds(10) for _ in range(3)) < 3 * min(seconds(100) for _ in range(3))


def test_both_of_pandas_formats_are_read(source, file):
    as_fixed(file)
    with open_spectra(source) as table, open_spectra(file) as fixed:
        pd.testing.assert_frame_equal(fixed.params, table.params)
        pd.testing.assert_frame_equal(fixed.read_params(10, 30), table.read_params(10, 30))
    before = fingerprint(file)
    edit(file, lambda raw: raw[f"{PARAMS}/block0_values"].__setitem__((99, 0), 0.123))
    assert fingerprint(file) != before
    edit(file, shorten(f"{PARAMS}/axis1", np.s_[:90]))
    with pytest.raises(UserError, match=r"axis1 is \(90,\)"):
        open_spectra(file)


def test_other_arrays_do_not_matter(source, file):
    edit(file, lambda raw: raw.__setitem__("dataset/arrays/noisy/value", np.full((100, 1024), np.nan)))
    with open_spectra(source) as plain, open_spectra(file) as other:
        assert np.array_equal(other.read(0, 100), plain.read(0, 100))
    edit(file, lambda raw: raw.__delitem__(MASK_ARRAY))
    open_spectra(file).read(0, 1)


def test_a_chunk_that_cannot_be_read_names_its_rows(file):
    edit(file, lambda raw: store_as(raw, chunks=(50, 1024), compression="gzip", fletcher32=True))
    damage_chunk(file, row=50)
    with open_spectra(file) as spectra:
        spectra.read(0, 50)
        with pytest.raises(UserError, match="rows 40 to 79 cannot be read"):
            list(spectra.blocks(0, 100, 40))


def damage_chunk(path, row):
    with h5py.File(path) as raw:
        where = raw[FLUX_ARRAY].id.get_chunk_info_by_coord((row, 0))
    with path.open("r+b") as raw:
        raw.seek(where.byte_offset + where.size // 2)
        raw.write(b"\0" * 64)


def test_edges_are_filled_from_the_neighbour(file):
    def damage(raw):
        raw[ERROR_ARRAY][3, 0] = raw[ERROR_ARRAY][4, -1] = np.nan

    edit(file, damage)
    with open_spectra(file) as spectra:
        flux, error = spectra.read(0, 100)
        assert error[3, 0] == error[3, 1]
        assert error[4, -1] == error[4, -2]
        assert spectra.filled_edges == 2
        check_rows(flux, error, file)


def test_only_the_outermost_pixels_are_filled():
    error = np.array([[np.nan, np.nan, 1.0, 2.0]])
    assert fill_edges(error) == 1
    assert np.isnan(error[0, :2]).all()


def test_whole_numbers_are_rounded_once(file):
    """Through float64, 2**55 + 2**31 + 1 would be rounded to the middle of two float32 numbers, and then to even."""
    values = np.full((100, 1024), 2**55 + 2**31 + 1)
    edit(file, lambda raw: (raw.__delitem__(FLUX_ARRAY), raw.__setitem__(FLUX_ARRAY, values)))
    with open_spectra(file) as spectra:
        assert np.array_equal(spectra.read(0, 100)[0], values.astype(np.float32))


def fingerprint(path):
    with open_spectra(path) as spectra:
        return spectra.fingerprint()


def test_the_fingerprint_follows_the_content(file, source):
    assert fingerprint(file) == fingerprint(source)

    def damage(raw):
        raw[FLUX_ARRAY][0, 0] += 1e-9

    edit(file, damage)
    assert fingerprint(file) != fingerprint(source)


def test_the_fingerprint_does_not_depend_on_how_much_is_read_together(source, monkeypatch):
    before = fingerprint(source)
    monkeypatch.setattr("scaling.data.hdf5.reader.TABLE_ROWS", 7)
    assert fingerprint(source) == before


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
