"""A file of simulated spectra, and a copy to damage."""

import shutil
from pathlib import Path

import pytest

from scaling.data.simulated.writer import Simulation, write_simulation


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    simulation = Simulation(train=100, val=1, test=1, pixels=1024)
    return write_simulation(tmp_path_factory.mktemp("sim"), simulation)["train"][0]


@pytest.fixture
def file(source, tmp_path):
    """A copy that a test may damage."""
    return Path(shutil.copy(source, tmp_path / "dataset.h5"))
