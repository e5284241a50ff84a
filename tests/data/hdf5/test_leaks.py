from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.data.hdf5.leaks import find_leaks, role_of
from scaling.data.hdf5.writer import write_spectra
from scaling.data.simulated.rows import Simulation, simulate_rows, wavelength_grid

POOL = simulate_rows(Simulation(pixels=1024), "train", 0, 40)
"""Spectra that the files of these tests are made of, by position."""


def write(path, rows, flux=None, **columns):
    """A file of some spectra of the pool, numbered from 0, with their flux or parameters changed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    params = POOL.params.iloc[rows].assign(id=range(len(rows)), **columns)
    with write_spectra(path, *wavelength_grid(1024), num_rows=len(rows), tag="test") as append:
        append(POOL.flux[rows] if flux is None else flux, POOL.error[rows], params)
    return path


@pytest.mark.parametrize(
    ("path", "role"),
    [
        ("train_200k_3/dataset.h5", "train"),
        ("/data/val_1k/dataset.h5", "val"),
        ("test_10k/dataset.h5", "test"),
        ("other/test.h5", "test"),
        ("other/dataset.h5", None),
    ],
)
def test_a_split_is_named_by_its_folder(path, role):
    assert role_of(Path(path)) == role


rows_of_pool = st.lists(st.integers(0, 39), min_size=1, max_size=12, unique=True)


@settings(max_examples=25, deadline=None)
@given(first=rows_of_pool, second=rows_of_pool, third=rows_of_pool)
def test_exactly_the_spectra_in_two_splits_are_found(tmp_path_factory, first, second, third):
    folder = tmp_path_factory.mktemp("leaks")
    files = {
        "train_0": write(folder / "train_0" / "dataset.h5", first),
        "train_1": write(folder / "train_1" / "dataset.h5", second),
        "test": write(folder / "test" / "dataset.h5", third),
    }
    expected = [
        f"{len(both)} spectra of {files['test']} are in {files[name]} too (row {third.index(both[0])} is row "
        f"{rows.index(both[0])} there): a leak between splits, drop them from one"
        for name, rows in (("train_0", first), ("train_1", second))
        if (both := [row for row in third if row in rows])
    ]
    assert find_leaks(list(files.values())) == expected  # the same spectrum twice in training is no leak


def test_equal_parameters_with_other_flux_are_no_leak(tmp_path):
    train = write(tmp_path / "train" / "dataset.h5", [0, 1, 2])
    test = write(tmp_path / "test" / "dataset.h5", [2, 1], flux=POOL.flux[[2, 1]] + [[0.0], [1.0]])
    (leak,) = find_leaks([train, test])
    assert leak.startswith("1 spectra of")
    assert "(row 0 is row 2 there)" in leak


def test_a_star_of_other_parameters_is_no_leak(tmp_path):
    train = write(tmp_path / "train" / "dataset.h5", [0, 1, 2])
    test = write(tmp_path / "test" / "dataset.h5", [2, 1], mag=[20.0, 20.0])
    assert find_leaks([train, test]) == []


def test_what_is_stored_otherwise_is_the_same_parameter(tmp_path):
    """Whole numbers as floats, minus zero, NaN against infinity, a column that only one file has, text."""
    train = write(tmp_path / "train" / "dataset.h5", [0, 1], redshift=-0.0, exp_count=12.0, Fe_H=np.inf, extra=3.0)
    test = write(tmp_path / "test" / "dataset.h5", [1], interp_param="T_eff")
    (leak,) = find_leaks([train, test])
    assert leak.startswith("1 spectra of")


def test_the_table_is_read_in_slabs(tmp_path, monkeypatch):
    asked = []
    read = pd.read_hdf

    def spy(*arguments, start, stop):
        asked.append(stop - start)
        return read(*arguments, start=start, stop=stop)

    train = write(tmp_path / "train" / "dataset.h5", list(range(30)))
    test = write(tmp_path / "test" / "dataset.h5", [29, 3])
    monkeypatch.setattr("scaling.data.hdf5.leaks.TABLE_ROWS", 7)
    monkeypatch.setattr(pd, "read_hdf", spy)
    (leak,) = find_leaks([train, test])
    assert leak.startswith("2 spectra of")
    assert "(row 0 is row 29 there)" in leak
    assert max(asked) == 7
