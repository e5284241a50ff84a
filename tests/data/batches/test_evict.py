import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import pytest

from scaling.__main__ import main
from scaling.data.batches.cache import map_split, mapped_bytes
from scaling.data.batches.cachefolder import cached_splits, evict
from scaling.data.batches.noise import FixedNoise
from scaling.errors import UserError

MB = 10**6
# Flux and error, 8 kB a row: train 2.5 MB, val 0.5 MB, test 0.8 MB, and up to 70 kB of parameters and marks.
ROWS = {"train": 300, "val": 64, "test": 96}


@pytest.fixture
def cache(shards, tmp_path):
    """A cache of three splits that nobody uses, last used in the order train, val, test."""
    for age, split in enumerate(ROWS):
        map_split(shards, split, ROWS[split], tmp_path).close()
        folder = next(tmp_path.glob(f"{split}-*"))
        os.utime(folder / "in-use", (age + 1, age + 1))
    return tmp_path


def names(splits):
    return [found.split for found in splits]


def test_a_listing_says_what_is_there(cache, shards):
    used = map_split(shards, "val", 1, cache)
    train, test, val = cached_splits(cache)
    assert names([train, test, val]) == ["train", "test", "val"]
    assert train.arrays == {"spectra": 300}
    assert train.dataset == str(shards)
    assert 300 * 8192 < train.num_bytes < 300 * 8192 + 70_000
    assert val.num_bytes > 64 * 8192
    map_split(shards, "train", 1, cache, noise=FixedNoise(0, 1.0)).close()
    grown = next(split for split in cached_splits(cache) if split.split == "train")
    assert grown.arrays == {"spectra": 300, "noisy-0-1.0": 128}
    assert abs(grown.num_bytes - train.num_bytes - 128 * 4096) < 20_000  # what is allocated, of a file of 300 rows
    assert train.last_used == 1
    assert (train.in_use, val.in_use) == (False, True)
    used.close()


def test_eviction_takes_all_that_nobody_uses(cache, shards):
    used = map_split(shards, "val", 64, cache)
    before = used.flux.copy()
    assert 0 <= mapped_bytes(cache) - sum(ROWS.values()) * 8192 < 3 * 4096  # files are allocated by blocks
    assert names(evict(cache)) == ["train", "test"]
    assert 0 <= mapped_bytes(cache) - ROWS["val"] * 8192 < 4096
    assert names(cached_splits(cache)) == ["val"]
    assert np.array_equal(used.flux, before)
    used.close()
    assert names(evict(cache)) == ["val"]
    assert [path.name for path in cache.iterdir() if path.is_dir()] == []


def test_the_least_recently_used_go_first(cache, shards):
    map_split(shards, "train", 1, cache).close()
    assert names(evict(cache, 3_600_000)) == ["val"]
    assert names(evict(cache, 3_600_000)) == []
    assert names(evict(cache, 0)) == ["test", "train"]


def test_only_the_caches_own_folders_are_ever_removed(cache):
    for name in ("mine", "train-notes", "val-0123456789abcdef"):
        (cache / name).mkdir()
        (cache / name / "precious").write_text("text")
    (cache / ".evicted-killed").mkdir()
    evict(cache)
    assert {path.name for path in cache.iterdir() if path.is_dir()} == {"mine", "train-notes", "val-0123456789abcdef"}


def test_a_map_outlives_its_files(cache, shards):
    flux = map_split(shards, "train", 300, cache).flux
    before = flux.copy()
    assert "train" in names(evict(cache))
    assert np.array_equal(flux, before)
    assert np.array_equal(map_split(shards, "train", 300, cache).flux, before)


def test_mapping_while_another_evicts_never_fails(cache, shards):
    expected = map_split(shards, "val", 64, cache).flux.copy()
    stop, removed, deadline = threading.Event(), [], time.monotonic() + 60

    def keep_evicting():
        while not stop.is_set():
            removed.extend(evict(cache))

    def keep_mapping():
        while len(removed) < 30 and time.monotonic() < deadline:
            mapped = map_split(shards, "val", 64, cache)
            assert np.array_equal(mapped.flux, expected)
            assert len(mapped.params(["row_id"])) == 64
            mapped.close()
            time.sleep(0.001)

    with ThreadPoolExecutor(3) as pool:
        evicting = pool.submit(keep_evicting)
        mapping = [pool.submit(keep_mapping) for _ in range(2)]
        wait(mapping)
        stop.set()
    for future in (evicting, *mapping):
        future.result()
    assert len(removed) >= 30


def test_a_build_evicts_until_it_fits(cache, shards):
    noise = FixedNoise(0, 1.0)
    test = map_split(shards, "test", 96, cache)
    train = map_split(shards, "train", 300, cache, noise=noise, limit=5 * MB)  # its own other arrays are in use too
    assert names(cached_splits(cache)) == ["test", "train"]
    assert sum(split.num_bytes for split in cached_splits(cache)) <= 5 * MB
    test.close()
    train.close()
    val = map_split(shards, "val", 64, cache, limit=2 * MB)
    assert names(cached_splits(cache)) == ["val"]
    assert len(val.flux) == 64


def test_a_limit_that_cannot_be_kept_is_an_error_and_evicts_nothing(cache, shards, monkeypatch):
    used = map_split(shards, "test", 96, cache)
    monkeypatch.setenv("SCALING_CACHE_LIMIT", "0.003")
    message = r"1\.23 MB more is needed, .* is in use, and the cache's limit is 3 MB: raise the limit"
    with pytest.raises(UserError, match=message):
        map_split(shards, "train", 300, cache, noise=FixedNoise(0, 1.0))
    assert set(names(cached_splits(cache))) == {"train", "val", "test"}
    assert len(map_split(shards, "train", 300, cache).flux) == 300  # what is there needs no room
    used.close()


def test_the_command_lists_and_evicts(cache, shards, capsys):
    def run(*arguments):
        status = main(["cache", "--cache", str(cache), *arguments])
        return status, capsys.readouterr()

    status, said = run()
    assert status == 0
    assert said.out.count(str(shards)) == 3
    assert "3 splits, 3." in said.out
    assert "spectra (300 rows)" in said.out
    status, said = run("--limit", "0.002")
    assert status == 0
    assert "removed" in said.out
    assert names(cached_splits(cache)) == ["val", "test"]
    used = map_split(shards, "val", 64, cache)
    status, said = run("--evict")
    assert names(cached_splits(cache)) == ["val"]
    assert "in use" in said.out
    used.close()
    for limit in ("-1", "0", "inf", "nan", "all"):
        status, said = run("--limit", limit)
        assert status == 2
        assert f"--limit is '{limit}': give a number of GB above 0" in said.err
