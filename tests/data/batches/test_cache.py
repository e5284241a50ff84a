import gc
import os
import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from scaling.__main__ import main
from scaling.data.batches.cache import cache_limit, default_cache_root, map_split
from scaling.data.batches.cachefolder import take
from scaling.data.shards.convert import convert
from scaling.errors import UserError
from tests.data.batches.caching import NOISE, folder_of, lengths, rows_in, stamps


@pytest.mark.parametrize("num_rows", [1, 128, 129, 300])
def test_a_map_is_the_first_rows(shards, training, tmp_path, num_rows):
    flux, error, params = training
    mapped = map_split(shards, "train", num_rows, tmp_path)
    assert np.array_equal(mapped.flux, flux[:num_rows])
    assert np.array_equal(mapped.error, error[:num_rows])
    assert mapped.spectra.shape == (num_rows, 2, 1024)
    found = mapped.params(["row_id", "log_g"])
    pd.testing.assert_frame_equal(found, params[["row_id", "log_g"]][:num_rows], check_exact=True)
    assert found["row_id"].tolist() == list(range(num_rows))


def test_only_what_is_asked_for_is_stored(shards, training, tmp_path):
    flux, error, _ = training
    noisy = map_split(shards, "train", 300, tmp_path, noise=NOISE)
    assert rows_in(tmp_path) == {"noisy-3-1.0": 300}
    assert noisy.spectra.shape == (300, 1, 1024)
    assert np.array_equal(noisy.flux, NOISE.add(flux, error, split="train", first_row=0))
    map_split(shards, "train", 1, tmp_path)
    assert rows_in(tmp_path) == {"noisy-3-1.0": 300, "spectra": 128}
    assert lengths(tmp_path) == {"noisy-3-1.0": 300 * 4096, "spectra": 300 * 8192}
    spectra = (folder_of(tmp_path) / "spectra.f32").stat()
    assert spectra.st_blocks * 512 < spectra.st_size / 2  # the rest is a hole


def test_noise_does_not_depend_on_the_shards(shards, tmp_path):
    """The same rows in other shards, whose borders lie inside noise blocks, have the same noise."""
    files = {split: sorted(shards.parent.glob(f"hdf5/{split}*/dataset.h5")) for split in ("train", "val", "test")}
    convert(tmp_path / "other", **files, rows_per_shard=90, on_ray=False)
    cache = tmp_path / "cache"
    here, there = (map_split(folder, "train", 300, cache, noise=NOISE) for folder in (shards, tmp_path / "other"))
    assert np.array_equal(here.flux, there.flux)
    assert len(list(cache.glob("train-*"))) == 2


def test_torch_takes_a_map_without_a_copy_or_a_warning(shards, tmp_path):
    flux = map_split(shards, "train", 10, tmp_path).flux
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = torch.from_numpy(flux)
    assert tensor.data_ptr() == flux.ctypes.data
    tensor[0, 0] = 77.0
    assert map_split(shards, "train", 10, tmp_path).flux[0, 0] != 77.0


def test_a_map_may_be_larger_than_memory(tmp_path):
    from scaling.data.batches.cache import _map

    rows = 4 * os.sysconf("SC_PHYS_PAGES")  # of a page each
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(rows * 4096)
    assert _map(tmp_path / "sparse", (rows, 1, 1024))[-1].sum() == 0


def test_a_longer_map_serves_shorter_prefixes(shards, tmp_path):
    map_split(shards, "train", 300, tmp_path)
    before = stamps(tmp_path)
    assert len(map_split(shards, "train", 5, tmp_path).flux) == 5
    assert stamps(tmp_path) == before


def test_more_rows_are_filled_in_below_a_map_in_use(shards, training, tmp_path):
    short = map_split(shards, "train", 5, tmp_path)
    inode = os.stat(folder_of(tmp_path) / "spectra.f32").st_ino
    first = folder_of(tmp_path) / "params" / "00000.parquet"
    written = first.stat().st_mtime_ns
    assert np.array_equal(map_split(shards, "train", 300, tmp_path).flux, training[0])
    assert os.stat(folder_of(tmp_path) / "spectra.f32").st_ino == inode
    assert first.stat().st_mtime_ns == written
    assert np.array_equal(short.flux, training[0][:5])


def test_mistakes_are_named(shards, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="301 spectra of train asked for: it holds 1 to 300"):
        map_split(shards, "train", 301, tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match=r"no parameter column 'log_gg': the shards have .*log_g"):
        map_split(shards, "train", 1, tmp_path).params(["log_gg"])
    for limit in ("many", "inf", "nan", "0", "-1"):
        monkeypatch.setenv("SCALING_CACHE_LIMIT", limit)
        with pytest.raises(UserError, match=f"SCALING_CACHE_LIMIT is '{limit}': give a number of GB"):
            map_split(shards, "train", 1, tmp_path)
    monkeypatch.setenv("SCALING_CACHE_LIMIT", "1.5")
    assert cache_limit() == 1_500_000_000


def test_the_default_root_is_the_users_or_the_environments(monkeypatch, tmp_path):
    monkeypatch.setenv("SCALING_CACHE", str(tmp_path))
    assert default_cache_root() == tmp_path
    monkeypatch.delenv("SCALING_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_root() == tmp_path / "spectral-scaling" / "maps"
    assert default_cache_root().stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("below", ["", "maps"])
@pytest.mark.parametrize("plant", ["a link", "open to all", "another user's"])
def test_a_default_root_that_another_user_made_first_is_refused_in_one_line(
    monkeypatch, tmp_path, capsys, plant, below
):
    monkeypatch.delenv("SCALING_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root, elsewhere = tmp_path / "cache" / "spectral-scaling" / below, tmp_path / "elsewhere"
    elsewhere.mkdir()
    root.parent.mkdir(parents=True)
    if plant == "a link":
        root.symlink_to(elsewhere)
    else:
        root.mkdir()
        root.chmod(0o777 if plant == "open to all" else 0o700)
    if plant == "another user's":
        if os.getuid() != 0:
            pytest.skip("needs root")
        os.chown(root, 65534, 65534)
    assert main(["cache"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"scaling: {root}: must be a real folder of yours that nobody else can write to: ")
    assert error.count("\n") == 1
    assert list(elsewhere.iterdir()) == []


def test_a_split_is_in_use_until_closed_or_forgotten(shards, tmp_path):
    closed, forgotten = (map_split(shards, "train", 1, tmp_path) for _ in range(2))
    folder = folder_of(tmp_path)
    assert take(folder) is None
    closed.close()
    assert take(folder) is None
    del forgotten
    gc.collect()
    taken = take(folder)
    assert taken is not None
    os.close(taken)
    closed.close()
