import dataclasses
import json
import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from scaling.data.hdf5.describe import describe, describe_set
from scaling.data.hdf5.reader import ERROR_ARRAY, FLUX_ARRAY, MASK_ARRAY, PARAMS, WAVE, WAVE_PER_SPECTRUM, open_spectra
from scaling.data.simulated.rows import COLUMNS
from scaling.data.simulated.writer import Simulation, write_simulation
from scaling.data.spectra import spectrum_snr
from scaling.errors import UserError
from tests.data.hdf5.test_reader import REAL, damage_chunk, edit, store_as


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """The folder of a simulation of 100 + 70 + 80 spectra."""
    folder = tmp_path_factory.mktemp("sim")
    write_simulation(folder, Simulation(train=100, val=70, test=80, pixels=1024))
    return folder


@pytest.fixture
def source(simulated):
    return simulated / "train_0" / "dataset.h5"


@pytest.fixture
def file(source, tmp_path):
    """A copy that a test may damage."""
    return Path(shutil.copy(source, tmp_path / "dataset.h5"))


@pytest.fixture
def folder(simulated, tmp_path):
    """A copy of the whole folder that a test may damage."""
    return Path(shutil.copytree(simulated, tmp_path / "sim"))


def put(path, column, rows, value):
    """Change values of a parameter column."""
    params = pd.read_hdf(path)
    params[column] = params[column].astype(float)
    params.loc[rows, column] = value
    with h5py.File(path, "a") as raw:
        del raw[PARAMS]
    params.to_hdf(path, key=PARAMS, format="table", min_itemsize=5)


def test_description(source):
    found = describe(source)
    assert (found.rows, found.pixels, found.checked_rows, found.problems) == (100, 1024, 100, [])
    columns = {column.name: column for column in found.columns}
    assert list(columns) == list(COLUMNS)
    assert columns["L_H"].nan == 100
    assert columns["L_H"].min is columns["interp_param"].min is None
    assert columns["id"].max == 99
    assert [columns[name].unit for name in ("T_eff", "log_g", "M_H_err", "mag", "exp_time", "snr", "L_H")] == [
        *("K", "dex", "dex", "mag", "s", "1"),
        None,
    ]
    with open_spectra(source) as spectra:
        snr = spectrum_snr(*spectra.read(0, 100))
        np.testing.assert_allclose(snr, spectra.params["snr"], rtol=1e-5)
    assert found.snr["50"] == pytest.approx(np.median(snr))
    assert found.snr_column_median == pytest.approx(np.median(snr), rel=1e-5)
    assert (found.masked_pixels, found.masked_rows) == (0, 0)
    assert "no problems found" in found.to_text()
    json.dumps(dataclasses.asdict(found), allow_nan=False)  # all of it is plain data


@pytest.mark.skipif(not REAL.exists(), reason="the real writer's file is not here")
def test_a_file_of_the_real_writer_has_no_problems():
    found = describe(REAL)
    assert found.problems == []
    assert found.masked_pixels == 0
    assert found.snr_column_median == 8.0


def test_filled_edges_and_bad_pixels_are_counted(file):
    def damage(raw):
        raw[ERROR_ARRAY][3, 0] = raw[ERROR_ARRAY][4, -1] = np.nan
        raw[MASK_ARRAY][5, 7:10] = 4
        raw[MASK_ARRAY][99, 0] = 1

    edit(file, damage)
    found = describe(file)
    assert (found.filled_edges, found.masked_pixels, found.masked_rows, found.problems) == (2, 4, 2, [])
    assert "bad pixels (mask not 0): 4 in 2 spectra" in found.to_text()
    edit(file, lambda raw: raw.__delitem__(MASK_ARRAY))
    assert describe(file).masked_pixels is None


def test_a_kind_of_fault_is_one_problem_with_its_first_row_and_number(file):
    def damage(raw):
        for row in (1, 50, 99):
            raw[FLUX_ARRAY][row] = 0.0
        raw[ERROR_ARRAY][40, 3] = -1.0

    edit(file, damage)
    assert describe(file).problems == [
        "flux is 0 in every pixel (never written) in row 1, 3 such of 100 read",
        "error is 0 or negative in row 40, 1 such of 100 read",
    ]


def test_a_large_file_is_sampled_to_its_last_row(file):
    edit(file, lambda raw: raw[FLUX_ARRAY].__setitem__(99, 0.0))
    found = describe(file, max_rows=32)
    assert found.checked_rows == 32
    assert len(found.problems) == 1
    assert "PROBLEM: flux is 0 in every pixel" in found.to_text()


def test_rows_that_were_never_stored_are_found_without_reading(file):
    def leave_out(raw):
        flux = raw[FLUX_ARRAY][:]
        del raw[FLUX_ARRAY]
        stored = raw.create_dataset(FLUX_ARRAY, flux.shape, flux.dtype, chunks=(10, 512))
        stored[:20], stored[40:] = flux[:20], flux[40:]
        stored[20:30, :512] = flux[20:30, :512]

    edit(file, leave_out)
    assert (
        f"{FLUX_ARRAY} was never written in 20 of 100 rows, first in rows 20 to 39"
        in describe(file, max_rows=16).problems
    )

    def never(raw):
        del raw[ERROR_ARRAY]
        raw.create_dataset(ERROR_ARRAY, (100, 1024), "f8")

    edit(file, never)
    assert f"{ERROR_ARRAY} was never written in 100 of 100 rows, first in rows 0 to 99" in describe(file).problems


def test_a_chunk_that_cannot_be_read_is_named_and_the_rest_described(file):
    edit(file, lambda raw: store_as(raw, chunks=(50, 1024), compression="gzip", fletcher32=True))
    damage_chunk(file, row=50)
    found = describe(file, max_rows=160)
    assert found.checked_rows == 50
    assert found.snr
    assert all("cannot be read" in problem for problem in found.problems)
    assert "rows 50 to 59" in found.problems[0]
    assert len(found.columns) == len(COLUMNS)


@pytest.mark.parametrize(
    ("column", "rows", "value", "problem"),
    [
        ("T_eff", [7, 9], 1e6, r"column T_eff is out of range in 2 rows, first in row 7: 1e\+06, expected 1000 to 1"),
        ("log_g", [3], -99.0, r"column log_g is out of range in 1 rows, first in row 3: -99, expected -1 to 10 dex"),
        ("M_H", [0], 7.0, "column M_H is out of range"),
        ("mag", [0], 99.0, "column mag is out of range"),
        ("snr", [5], 0.0, "column snr is out of range in 1 rows, first in row 5"),
        ("redshift_err", [5], -1.0, "expected 0 or more"),
        ("C_M", [2, 4], np.nan, "label C_M is NaN in 2 of 100 rows, first in row 2"),
        ("a_M", [8], np.inf, "column a_M is infinite in 1 rows, first in row 8"),
    ],
)
def test_labels_that_cannot_be_are_problems(file, column, rows, value, problem):
    put(file, column, rows, value)
    (found,) = describe(file).problems
    assert re.search(problem, found)


def test_nan_in_what_is_no_label_or_in_all_of_a_label_is_normal(file):
    put(file, "seeing", [1], np.nan)
    put(file, "a_M", slice(None), np.nan)
    assert describe(file).problems == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda raw: raw.__setitem__("dataset/arrays/noisy/value", np.ones((99, 1024))), r"array noisy .*99, 1024"),
        (lambda raw: raw.__setitem__("dataset/arrays/mask/value", np.ones((90, 1024))), r"array mask .*90, 1024"),
        (
            lambda raw: (raw.__delitem__(ERROR_ARRAY), raw.__setitem__(ERROR_ARRAY, np.ones((99, 1024)))),
            r"error is \(99, 1024\)",
        ),
        (lambda raw: raw.__delitem__(WAVE), f"no {WAVE}"),
        (lambda raw: raw.__setitem__(WAVE_PER_SPECTRUM, np.ones((100, 1024))), "each spectrum has a grid"),
    ],
)
def test_a_damaged_layout_is_described_by_its_problem(file, change, problem):
    if "mask" in problem:
        edit(file, lambda raw: raw.__delitem__(MASK_ARRAY))
    edit(file, change)
    (found,) = describe(file).problems
    assert re.search(problem, found)
    assert f"PROBLEM: {found}" in describe(file).to_text()


def test_a_file_that_is_cut_short_is_a_problem_and_one_of_another_kind_a_mistake(file):
    file.write_bytes(file.read_bytes()[:100_000])
    assert "cut short" in describe(file).problems[0]
    file.write_text("text")
    with pytest.raises(UserError, match="not an HDF5 file"):
        describe(file)
    with h5py.File(file, "w") as raw:
        raw["x"] = 1
    with pytest.raises(UserError, match=f"no {WAVE}"):
        describe(file)


def files_of(folder):
    return sorted(folder.glob("*/dataset.h5"))


def test_a_sound_set_has_no_problems(simulated):
    found = describe_set(files_of(simulated))
    assert [file.rows for file in found.files] == [80, 100, 70]
    assert found.problems == []
    assert "3 files together: 250 spectra\n  no further problems found" in found.to_text()


def test_what_differs_between_files_is_a_problem(folder):
    edit(folder / "val" / "dataset.h5", lambda raw: raw[WAVE].__setitem__(0, raw[WAVE][0] - 0.1))
    params = pd.read_hdf(folder / "train_0" / "dataset.h5").drop(columns="a_M")
    edit(folder / "train_0" / "dataset.h5", lambda raw: raw.__delitem__(PARAMS))
    params.to_hdf(folder / "train_0" / "dataset.h5", key=PARAMS, format="table")
    test, train, val = (str(path) for path in files_of(folder))
    assert describe_set(files_of(folder)).problems == [
        f"{test} and {train}: only one has the columns a_M",
        f"{test} and {val} have different wavelength grids",
    ]


def test_a_damaged_file_does_not_hide_the_others(folder):
    test, train, val = files_of(folder)
    train.write_bytes(train.read_bytes()[:100_000])
    shutil.copy(test, val)
    found = describe_set([test, train, val])
    assert [len(file.problems) for file in found.files] == [0, 1, 0]
    assert len(found.across) == 1
    assert "leak between splits" in found.across[0]
    assert found.problems[0].startswith(f"{train}: ")
    json.dumps(dataclasses.asdict(found), allow_nan=False)
