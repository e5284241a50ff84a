"""A small shard set, for the tests that edit one."""

import shutil

import pytest

from scaling.data.shards.convert import convert
from tests.data.shards import small_files
from tests.data.shards.converting import without_ray


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return small_files.write_splits(tmp_path_factory.mktemp("files"), train=60, val=10, test=20)


@pytest.fixture(scope="module")
def original(sources, tmp_path_factory):
    """A shard set that no test changes."""
    dest = tmp_path_factory.mktemp("original") / "shards"
    with pytest.MonkeyPatch.context() as patch:
        without_ray(patch)
        convert(dest, **sources, rows_per_shard=16)
    return dest


@pytest.fixture
def dest(original, tmp_path):
    return shutil.copytree(original, tmp_path / "shards")
