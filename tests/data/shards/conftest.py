"""A small shard set, for the tests that edit one."""

import shutil

import pytest

from tests.data.shards import small_files
from tests.data.shards.converting import convert_here


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return small_files.write_splits(tmp_path_factory.mktemp("files"), train=60, val=10, test=20)


@pytest.fixture(scope="module")
def original(sources, tmp_path_factory):
    """A shard set that no test changes."""
    return convert_here(tmp_path_factory.mktemp("original") / "shards", sources, rows_per_shard=16)


@pytest.fixture
def dest(original, tmp_path):
    return shutil.copytree(original, tmp_path / "shards")
