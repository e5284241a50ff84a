import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from scaling.data import cache
from scaling.data.cache import default_cache_root, map_noisy, map_split
from scaling.data.hdf5 import open_spectra
from scaling.data.shards import convert
from scaling.data.simulate import Simulation, write_simulation
from scaling.errors import UserError

pytestmark = pytest.mark.ray
SIMULATION = Simulation(train=300, val=70, test=64, pixels=1024)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return write_simulation(tmp_path_factory.mktemp("sim"), SIMULATION)


@pytest.fixture(scope="module")
def shards(sources, tmp_path_factory, ray_cluster):
    dest = tmp_path_factory.mktemp("shards")
    convert(dest, **sources, rows_per_shard=64)
    return dest


@pytest.fixture(scope="module")
def training(sources):
    with open_spectra(sources["train"][0]) as spectra:
        return (*spectra.read(0, 300), spectra.params)


def files(root):
    return {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file() and path.name != "lock"}


@pytest.mark.parametrize("num_rows", [1, 64, 65, 300])
def test_a_map_is_the_first_rows(shards, training, tmp_path, num_rows):
    flux, error, params = training
    mapped = map_split(shards, "train", num_rows, tmp_path)
    assert isinstance(mapped.flux, np.memmap)
    assert not mapped.flux.flags.writeable
    assert np.array_equal(mapped.flux, flux[:num_rows])
    assert np.array_equal(mapped.error, error[:num_rows])
    assert mapped.params["row_id"].tolist() == list(range(num_rows))
    pd.testing.assert_frame_equal(mapped.params.drop(columns="row_id"), params[:num_rows], check_exact=True)


def test_a_longer_map_serves_shorter_prefixes(shards, tmp_path):
    map_split(shards, "train", 300, tmp_path)
    before = files(tmp_path)
    short = map_split(shards, "train", 5, tmp_path)
    assert len(short.flux) == 5
    assert files(tmp_path) == before


def test_a_map_grows_when_more_is_needed(shards, training, tmp_path):
    short = map_split(shards, "train", 5, tmp_path)
    assert np.array_equal(map_split(shards, "train", 200, tmp_path).flux, training[0][:200])
    assert np.array_equal(short.flux, training[0][:5])


def test_noise_is_fixed_by_seed_split_and_row(shards, training, tmp_path):
    flux, error, _ = training
    few = map_noisy(shards, "train", 50, tmp_path, seed=3, level=1.0)
    many = map_noisy(shards, "train", 300, tmp_path, seed=3, level=1.0)
    assert isinstance(few, np.memmap)
    assert not many.flags.writeable
    assert np.array_equal(few, many[:50])
    draw = (many - np.maximum(flux, 0)) / error
    assert draw.mean() == pytest.approx(0, abs=0.01)
    assert draw.std() == pytest.approx(1, abs=0.01)
    assert not np.allclose(few, map_noisy(shards, "train", 50, tmp_path, seed=4, level=1.0))
    double = map_noisy(shards, "train", 50, tmp_path, seed=3, level=2.0)
    np.testing.assert_allclose((double - np.maximum(flux, 0)[:50]) / error[:50], 2 * draw[:50], atol=1e-4)
    other_split = map_noisy(shards, "val", 50, tmp_path, seed=3, level=1.0)
    mapped = map_split(shards, "val", 50, tmp_path)
    assert not np.allclose((other_split - mapped.flux) / mapped.error, draw[:50], atol=0.1)


def test_noise_is_drawn_in_whole_blocks(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "NOISE_BLOCK_ROWS", 100)
    noisy = map_noisy(shards, "train", 300, tmp_path, seed=0, level=1.0)
    mapped = map_split(shards, "train", 300, tmp_path)
    generator = torch.Generator().manual_seed(cache.stable_seed("fixed noise", 0, "train", 2))
    draw = torch.randn(100, 1024, generator=generator).numpy()
    np.testing.assert_allclose(noisy[200:], mapped.flux[200:] + draw * mapped.error[200:], atol=1e-6)


def test_level_zero_is_the_clean_spectrum(shards, training, tmp_path):
    noisy = map_noisy(shards, "train", 20, tmp_path, seed=0, level=0.0)
    assert np.array_equal(noisy, np.maximum(training[0][:20], 0))


def test_too_many_rows_are_refused(shards, tmp_path):
    with pytest.raises(UserError, match="301 spectra of train asked for: it holds 1 to 300"):
        map_split(shards, "train", 301, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_shard_is_named_and_leaves_no_map(shards, tmp_path):
    damaged = shutil.copytree(shards, tmp_path / "shards")
    second = damaged / "train" / "part-00001.parquet"
    shutil.copy(damaged / "train" / "part-00002.parquet", second)
    with pytest.raises(UserError, match=r"part-00001\.parquet differs from the manifest's checksum"):
        map_split(damaged, "train", 100, tmp_path / "cache")
    assert files(tmp_path / "cache") == {}
    second.unlink()
    with pytest.raises(UserError, match=r"part-00001\.parquet: this shard cannot be read"):
        map_split(damaged, "train", 100, tmp_path / "cache")
    assert len(map_split(damaged, "train", 64, tmp_path / "cache").flux) == 64


def test_a_full_disk_is_a_clear_error(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1000, 999, 1))
    with pytest.raises(UserError, match="set SCALING_CACHE to a folder on a larger disk"):
        map_split(shards, "train", 1, tmp_path)


def test_leftovers_of_a_killed_writer_are_removed(shards, tmp_path):
    map_noisy(shards, "train", 1, tmp_path, seed=0, level=1.0)
    (base,) = tmp_path.iterdir()
    (base / ".000005.killed.tmp").mkdir()
    (base / ".000005.killed.tmp" / "flux.npy").write_text("half")
    map_split(shards, "train", 300, tmp_path)
    assert list(tmp_path.rglob("*.tmp")) == []


def test_simultaneous_callers_share_one_map(shards, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        noisy = list(pool.map(lambda _: map_noisy(shards, "train", 300, tmp_path, seed=0, level=1.0), range(4)))
    assert all(np.array_equal(noisy[0], other) for other in noisy[1:])
    assert len(files(tmp_path)) == 4


def test_the_default_root_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("SCALING_CACHE", str(tmp_path))
    assert default_cache_root() == tmp_path
    monkeypatch.delenv("SCALING_CACHE")
    assert default_cache_root().name == "spectral-scaling-cache"


def test_params_are_plain_parquet(shards, tmp_path):
    map_split(shards, "val", 70, tmp_path)
    (path,) = tmp_path.rglob("params.parquet")
    assert pq.read_table(path).num_rows == 70
