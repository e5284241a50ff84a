import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from scaling.data import cachebuild
from scaling.data.cache import cache_limit, default_cache_root, map_split
from scaling.data.cachefolder import Watermark, take
from scaling.data.manifest import Manifest
from scaling.data.noise import FixedNoise
from scaling.data.shardfile import ERROR, FLUX, column_values
from scaling.errors import UserError

NOISE = FixedNoise(seed=3, level=1.0)
ROW_BYTES = 4 * 1024


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


def folder_of(root):
    (folder,) = (path for path in root.iterdir() if path.is_dir())
    return folder


def stamps(root):
    kept = (path for path in root.rglob("*") if path.is_file() and path.name not in ("lock", "in-use"))
    return {str(path.relative_to(root)): (path.stat().st_ino, path.stat().st_mtime_ns) for path in kept}


def sizes(root):
    return {path.name: path.stat().st_size for path in root.rglob("*.f32")}


@pytest.mark.parametrize("num_rows", [1, 128, 129, 300])
def test_a_map_is_the_first_rows(shards, training, tmp_path, num_rows):
    flux, error, params = training
    mapped = map_split(shards, "train", num_rows, tmp_path)
    assert np.array_equal(mapped.flux, flux[:num_rows])
    assert np.array_equal(mapped.error, error[:num_rows])
    assert mapped.noisy is None
    found = mapped.params(["row_id", "log_g"])
    pd.testing.assert_frame_equal(found, params[["row_id", "log_g"]][:num_rows], check_exact=True)
    assert found["row_id"].tolist() == list(range(num_rows))


def test_only_what_is_asked_for_is_stored(shards, training, tmp_path):
    flux, error, _ = training
    noisy = map_split(shards, "train", 300, tmp_path, noise=NOISE)
    assert sizes(tmp_path) == {"noisy-3-1.0.f32": 300 * ROW_BYTES}
    assert noisy.flux is None
    assert noisy.error is None
    assert np.array_equal(noisy.noisy, NOISE.add(flux, error, split="train", first_row=0))
    map_split(shards, "train", 1, tmp_path)
    expected = {"flux.f32": 128 * ROW_BYTES, "error.f32": 128 * ROW_BYTES, "noisy-3-1.0.f32": 300 * ROW_BYTES}
    assert sizes(tmp_path) == expected


def test_noise_does_not_depend_on_the_shards(shards, own_shards, training, tmp_path):
    """The same rows in other shards, whose borders lie inside noise blocks, have the same noise."""
    fields = json.loads((own_shards / "manifest.json").read_text())
    table = pq.read_table([own_shards / shard["file"] for shard in fields["splits"]["train"]])
    fields["splits"]["train"] = []
    for index, start in enumerate(range(0, 300, 90)):
        part, checksum = table.slice(start, 90), cachebuild.Checksum()
        checksum.update(part)
        file = f"train/other-{index}.parquet"
        pq.write_table(part, own_shards / file)
        fields["splits"]["train"].append({"file": file, "rows": len(part), "checksum": checksum.hexdigest()})
    (own_shards / "manifest.json").write_text(json.dumps(fields))
    here, there = (map_split(folder, "train", 300, tmp_path, noise=NOISE) for folder in (shards, own_shards))
    assert np.array_equal(here.noisy, there.noisy)
    assert len(list(tmp_path.glob("train-*"))) == 2


def test_torch_takes_a_map_without_a_copy_or_a_warning(shards, tmp_path):
    flux = map_split(shards, "train", 10, tmp_path).flux
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = torch.from_numpy(flux)
    assert tensor.data_ptr() == flux.ctypes.data
    tensor[0, 0] = 77.0
    assert map_split(shards, "train", 10, tmp_path).flux[0, 0] != 77.0


def test_a_map_may_be_larger_than_memory(tmp_path):
    from scaling.data.cache import _map

    rows = 4 * os.sysconf("SC_PHYS_PAGES")  # of a page each
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(rows * 4096)
    assert _map(tmp_path / "sparse", rows, 1024)[-1].sum() == 0


def test_a_longer_map_serves_shorter_prefixes(shards, tmp_path):
    map_split(shards, "train", 300, tmp_path)
    before = stamps(tmp_path)
    assert len(map_split(shards, "train", 5, tmp_path).flux) == 5
    assert stamps(tmp_path) == before


def test_more_rows_are_appended_below_a_map_in_use(shards, training, tmp_path):
    short = map_split(shards, "train", 5, tmp_path)
    inode = os.stat(folder_of(tmp_path) / "flux.f32").st_ino
    first = folder_of(tmp_path) / "params" / "part-00000.parquet"
    written = first.stat().st_mtime_ns
    assert np.array_equal(map_split(shards, "train", 300, tmp_path).flux, training[0])
    assert os.stat(folder_of(tmp_path) / "flux.f32").st_ino == inode
    assert first.stat().st_mtime_ns == written
    assert np.array_equal(short.flux, training[0][:5])


def test_mistakes_are_named(shards, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="301 spectra of train asked for: it holds 1 to 300"):
        map_split(shards, "train", 301, tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match=r"no parameter column 'log_gg': the shards have .*log_g"):
        map_split(shards, "train", 1, tmp_path).params(["log_gg"])
    monkeypatch.setenv("SCALING_CACHE_LIMIT", "many")
    with pytest.raises(UserError, match="SCALING_CACHE_LIMIT is 'many': give a number of GB"):
        map_split(shards, "train", 1, tmp_path)
    monkeypatch.setenv("SCALING_CACHE_LIMIT", "1.5")
    assert cache_limit() == 1_500_000_000


def test_the_default_root_is_the_users_or_the_environments(monkeypatch, tmp_path):
    monkeypatch.setenv("SCALING_CACHE", str(tmp_path))
    assert default_cache_root() == tmp_path
    monkeypatch.delenv("SCALING_CACHE")
    assert default_cache_root().name == f"spectral-scaling-cache-{os.getuid()}"


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


@pytest.mark.parametrize("lost", ["flux.f32", "error.json", "params/part-00001.parquet"])
def test_a_lost_file_is_made_again(shards, training, tmp_path, lost):
    map_split(shards, "train", 300, tmp_path)
    (folder_of(tmp_path) / lost).unlink()
    mapped = map_split(shards, "train", 300, tmp_path)
    assert np.array_equal(mapped.flux, training[0])
    assert np.array_equal(mapped.error, training[1])
    assert mapped.params(["row_id"])["row_id"].tolist() == list(range(300))


def test_a_truncated_file_is_made_again(shards, training, tmp_path):
    map_split(shards, "train", 300, tmp_path)
    os.truncate(folder_of(tmp_path) / "flux.f32", 200 * ROW_BYTES)
    assert np.array_equal(map_split(shards, "train", 50, tmp_path).flux, training[0][:50])
    assert np.array_equal(map_split(shards, "train", 300, tmp_path).flux, training[0])


def test_what_a_killed_writer_and_an_older_format_left_is_removed(shards, training, tmp_path):
    map_split(shards, "train", 1, tmp_path)
    folder = folder_of(tmp_path)
    (folder / ".flux.json.x.tmp").write_text("half")
    (folder / "params" / ".part-00001.parquet.x.tmp").write_text("half")
    (folder / "000003").mkdir()
    (folder / "000003" / "flux.npy").write_text("older")
    with open(folder / "flux.f32", "ab") as file:
        file.write(b"\x01" * 5000)
    assert np.array_equal(map_split(shards, "train", 300, tmp_path).flux, training[0])
    assert not list(folder.rglob(".*.tmp"))
    assert not (folder / "000003").exists()


@pytest.mark.parametrize("damage", ["exchanged", "deleted", "cut short", "another table"])
def test_a_damaged_shard_is_named_and_the_watermark_stays_before_it(own_shards, training, tmp_path, damage):
    second = own_shards / "train" / "part-00001.parquet"
    if damage == "exchanged":
        shutil.copy(own_shards / "train" / "part-00000.parquet", second)
    elif damage == "deleted":
        second.unlink()
    elif damage == "cut short":
        os.truncate(second, second.stat().st_size // 2)
    else:
        pq.write_table(pq.read_table(second, columns=["row_id"]), second)
    cache = tmp_path / "cache"
    with pytest.raises(UserError, match=r"part-00001\.parquet"):
        map_split(own_shards, "train", 300, cache)
    folder = folder_of(cache)
    assert Watermark.of(folder, "flux") == Watermark.of(folder, "error") == Watermark(rows=128, shards=1)
    assert sizes(cache) == {"flux.f32": 128 * ROW_BYTES, "error.f32": 128 * ROW_BYTES}
    before = stamps(cache)
    assert np.array_equal(map_split(own_shards, "train", 128, cache).flux, training[0][:128])
    assert stamps(cache) == before


def test_a_disk_without_room_is_refused_at_once(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(cachebuild.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1000, 999, 1))
    with pytest.raises(UserError, match=r"GB is free: set SCALING_CACHE to a folder on a larger disk"):
        map_split(shards, "train", 1, tmp_path)
    assert sizes(tmp_path) == {"flux.f32": 0, "error.f32": 0}


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("may not mount a small file system here")
    yield disk
    gc.collect()
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_disk_that_fills_while_building_leaves_what_is_complete(shards, training, small_disk, monkeypatch):
    """Flux and error of 128 rows take 1 MB, and of 300 rows 2.4 MB; another writer has taken 1.5 MB since the check."""
    monkeypatch.setattr(cachebuild, "MAX_THREADS", 1)
    (small_disk / "other").write_bytes(bytes(1_500_000))
    free = shutil._ntuple_diskusage(10**9, 0, 10**9)
    with monkeypatch.context() as patch:
        patch.setattr(cachebuild.shutil, "disk_usage", lambda _: free)
        with pytest.raises(UserError, match=r"the disk filled up meanwhile; what is complete stays.*SCALING_CACHE"):
            map_split(shards, "train", 300, small_disk / "cache")
    folder = folder_of(small_disk / "cache")
    assert Watermark.of(folder, "flux") == Watermark.of(folder, "error") == Watermark(rows=128, shards=1)
    assert sizes(folder) == {"flux.f32": 128 * ROW_BYTES, "error.f32": 128 * ROW_BYTES}
    (small_disk / "other").unlink()
    assert np.array_equal(map_split(shards, "train", 300, small_disk / "cache").flux, training[0])


def test_threads_of_a_process_share_one_build(shards, training, tmp_path, monkeypatch):
    runs = []
    run = cachebuild.CacheBuild.run
    monkeypatch.setattr(cachebuild.CacheBuild, "run", lambda self, limit: (runs.append(1), run(self, limit))[1])
    with ThreadPoolExecutor(4) as pool:
        maps = list(pool.map(lambda _: map_split(shards, "train", 300, tmp_path), range(4)))
    assert len(runs) == 1
    assert all(np.array_equal(mapped.flux, training[0]) for mapped in maps)


BUILDER = """
import sys, time
from pathlib import Path
from scaling.data import cachebuild
from scaling.data.cache import map_split
shards, cache, pause = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
cachebuild.MAX_THREADS, cachebuild.MARK_BYTES = 1, 1
copy = cachebuild.CacheBuild._copy
def slow_copy(self, job, files):
    print("shard", job.index, flush=True)
    if job.index == 1:
        time.sleep(pause)
    copy(self, job, files)
cachebuild.CacheBuild._copy = slow_copy
print("sum", map_split(shards, "train", 300, cache).flux.sum(dtype="f8"), flush=True)
"""


def start_builder(shards, cache, pause):
    command = [sys.executable, "-c", BUILDER, str(shards), str(cache), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_processes_build_one_copy(shards, training, tmp_path):
    builders = [start_builder(shards, tmp_path, 0.5) for _ in range(2)]
    said = [builder.communicate(timeout=200)[0].split("\n") for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0]
    assert sorted(line for lines in said for line in lines if line.startswith("shard")) == [
        "shard 0",
        "shard 1",
        "shard 2",
    ]
    assert said[0][-2] == said[1][-2] == f"sum {training[0].sum(dtype='f8')}"


def test_a_killed_build_goes_on_from_its_watermark(shards, training, tmp_path, monkeypatch):
    builder = start_builder(shards, tmp_path, 200)
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        folders = [path for path in tmp_path.iterdir() if path.is_dir()]
        if folders and Watermark.of(folders[0], "error").shards == 1:
            break
        time.sleep(0.02)
    os.kill(builder.pid, signal.SIGKILL)
    builder.wait()
    builder.stdout.close()
    assert Watermark.of(folder_of(tmp_path), "flux") == Watermark(rows=128, shards=1)
    copied = []
    copy = cachebuild.CacheBuild._copy
    monkeypatch.setattr(
        cachebuild.CacheBuild, "_copy", lambda self, job, files: (copied.append(job.index), copy(self, job, files))
    )
    mapped = map_split(shards, "train", 300, tmp_path)
    assert sorted(copied) == [1, 2]
    assert np.array_equal(mapped.flux, training[0])
    assert np.array_equal(mapped.error, training[1])
