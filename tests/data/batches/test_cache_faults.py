"""The node cache under lost files, damaged shards, full disks, and several builders at once."""

import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow.parquet as pq
import pytest

from scaling.data.batches import cachebuild
from scaling.data.batches.cache import map_split
from scaling.data.batches.cachefolder import Watermark
from scaling.errors import UserError
from tests.data.batches.caching import ROW_BYTES, folder_of, sizes, stamps


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


def test_a_disk_that_fills_while_building_leaves_what_is_complete(shards, training, small_disk, monkeypatch):
    """Flux and error of 128 rows take 1 MB, and of 300 rows 2.4 MB; another writer has taken 1.5 MB since the check."""
    monkeypatch.setattr(cachebuild, "MAX_THREADS", 1)
    disk = small_disk(3 * 2**20)
    (disk / "other").write_bytes(bytes(1_500_000))
    free = shutil._ntuple_diskusage(10**9, 0, 10**9)
    with monkeypatch.context() as patch:
        patch.setattr(cachebuild.shutil, "disk_usage", lambda _: free)
        with pytest.raises(UserError, match=r"the disk filled up meanwhile; what is complete stays.*SCALING_CACHE"):
            map_split(shards, "train", 300, disk / "cache")
    folder = folder_of(disk / "cache")
    assert Watermark.of(folder, "flux") == Watermark.of(folder, "error") == Watermark(rows=128, shards=1)
    assert sizes(folder) == {"flux.f32": 128 * ROW_BYTES, "error.f32": 128 * ROW_BYTES}
    (disk / "other").unlink()
    assert np.array_equal(map_split(shards, "train", 300, disk / "cache").flux, training[0])


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
from scaling.data.batches import cachebuild
from scaling.data.batches.cache import map_split
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
