"""Fixtures of the tests of data."""

import gc
import os
import shutil
import subprocess

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


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a file system of so many bytes; skips where that is not permitted."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(num_bytes, *options):
        command = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={num_bytes}", *options]), "tmpfs", str(folder)]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting a small disk is not permitted here")
        return folder

    yield mount
    gc.collect()  # what is mapped keeps a disk mounted
    if os.path.ismount(folder):
        subprocess.run(["umount", "-l", str(folder)], check=True)
