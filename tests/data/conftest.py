"""Fixtures of the tests of data."""

import shutil

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from scaling.data.shards.manifest import Manifest
from scaling.data.shards.shard import column_values
from scaling.data.spectra import ERROR, FLUX


@pytest.fixture(scope="module")
def training(shards):
    """The training split's flux, error and parameters, by plain pyarrow."""
    tables = [pq.read_table(shards / shard.file) for shard in Manifest.load(shards).shards("train")]
    flux, error = (np.concatenate([column_values(table, name) for table in tables]) for name in (FLUX, ERROR))
    params = pd.concat([table.drop_columns([FLUX, ERROR]).to_pandas() for table in tables], ignore_index=True)
    return flux, error, params


@pytest.fixture
def own_shards(shards, tmp_path):
    """A copy to damage."""
    return shutil.copytree(shards, tmp_path / "shards")
