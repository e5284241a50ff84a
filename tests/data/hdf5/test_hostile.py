"""Files that nobody should trust: `scaling inspect` reports them, a conversion refuses them, in one line each."""

import os
import pickle
import re
import resource
import warnings

import numpy as np
import pandas as pd
import pytest

from scaling.__main__ import main
from scaling.data.hdf5.columns import shard_type
from scaling.data.hdf5.describe import describe
from scaling.data.hdf5.reader import open_spectra
from scaling.data.spectra import check_rows
from scaling.errors import UserError
from tests.data.hdf5 import hostile


@pytest.fixture
def file(tmp_path):
    return hostile.write(tmp_path / "dataset.h5")


def damage(file, change):
    with warnings.catch_warnings(action="ignore"):  # pandas and PyTables warn of what is asked of them here
        change(file)


def use(path):
    """What a conversion does with a file."""
    with open_spectra(path) as spectra:
        for name, column in spectra.read_params().items():
            assert column.name == name
            shard_type(path, column)
        flux, error = spectra.read(0, spectra.num_rows)
        check_rows(flux, error, path)
        spectra.fingerprint()


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    ("change", "message"), (hostile.EDITS | hostile.FAULTY_ROWS).values(), ids=[*hostile.EDITS, *hostile.FAULTY_ROWS]
)
def test_it_is_reported_and_refused_in_one_line(file, change, message):
    damage(file, change)
    with pytest.raises(UserError, match=message) as raised:
        use(file)
    assert "\n" not in str(raised.value)
    assert str(file) in str(raised.value)
    try:
        problems = describe(file).problems
    except UserError as mistake:
        problems = [str(mistake)]
    assert any(re.search(message, problem) for problem in problems)
    assert not any("\n" in problem for problem in problems)
    assert not file.with_name("executed").exists()


@pytest.mark.parametrize("change", hostile.SOUND.values(), ids=hostile.SOUND)
def test_what_is_unusual_and_sound_is_used(file, change):
    damage(file, change)
    use(file)
    assert describe(file).problems == []
    assert not file.with_name("executed").exists()


def test_pickles_are_loaded_as_ever_outside(file):
    damage(file, hostile.attribute(hostile.PARAMS, "note", np.bytes_(pickle.dumps(complex(1, 2), 0))))
    use(file)
    with pd.HDFStore(file) as store:
        assert store.get_storer(hostile.PARAMS).attrs.note == 1 + 2j


def test_a_pickle_of_few_bytes_takes_no_memory(file):
    """The unpickler in C makes room for as many memos as a number in the pickle says: here 2 GiB for 8 bytes."""
    damage(file, hostile.attribute(hostile.PARAMS, "non_index_axes", np.bytes_(b"(Nr\x01\x01\x01\x08t.")))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="cannot be read"):
        use(file)
    assert describe(file).problems
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 500_000  # KiB


@pytest.mark.timeout(30)
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["FIFO", "device"])
def test_what_is_no_regular_file_is_not_waited_for(tmp_path, make, capsys):
    path = tmp_path / "dataset.h5"
    make(path)
    for function in (open_spectra, describe):
        with pytest.raises(UserError, match="is not a regular file"):
            function(path)
    assert main(["inspect", str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
