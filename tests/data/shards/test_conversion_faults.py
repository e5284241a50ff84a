"""What a conversion survives: workers and drivers that are killed, disks that fill up, files that are cut short."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import pytest

from scaling.data.hdf5.reader import FLUX_ARRAY
from scaling.data.shards import convert as convert_module
from scaling.data.shards import pipeline
from scaling.data.shards.convert import convert
from scaling.data.shards.datasink import ShardDatasink
from scaling.data.shards.manifest import MANIFEST
from scaling.data.shards.verify import verify
from scaling.data.simulated.writer import Simulation, write_simulation
from scaling.errors import UserError
from scaling.folder import Folder
from tests.data.shards.converting import contents, convert_here, mtimes, without_ray

ROWS_PER_SHARD = 128


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return write_simulation(tmp_path_factory.mktemp("sim"), Simulation(train=1200, val=20, test=20, pixels=1024))


@pytest.fixture(scope="module")
def undisturbed(sources, tmp_path_factory):
    """What comes out where nothing goes wrong, by order."""
    return {
        order: contents(
            convert_here(tmp_path_factory.mktemp(order) / "shards", sources, rows_per_shard=ROWS_PER_SHARD, order=order)
        )
        for order in ("source", "shuffled")
    }


@pytest.mark.ray
@pytest.mark.parametrize("order", ["source", "shuffled"])
def test_killed_workers_cost_nothing(order, sources, undisturbed, ray_cluster, tmp_path, monkeypatch):
    """One worker is killed in the middle of its rows, one when a shard has its name and nobody knows."""
    markers = tmp_path / "markers"
    markers.mkdir()

    def kill_once(name):
        marker = markers / name
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    class KillingSink(ShardDatasink):
        def _put(self, encoder, unfinished):
            summary = super()._put(encoder, unfinished)
            if encoder.planned.file == "train/part-00007.parquet":
                kill_once("put")
            return summary

    def write_with_kills(datasource, prepare, sink, num_tasks):
        sink.__class__ = KillingSink

        def killing(block):
            if 300 in block["row_id"].to_pylist():
                kill_once("prepare")
            return prepare(block)

        return pipeline.write_shards(datasource, killing, sink, num_tasks)

    monkeypatch.setattr(convert_module, "write_shards", write_with_kills)
    dest = tmp_path / "shards"
    convert(dest, **sources, rows_per_shard=ROWS_PER_SHARD, order=order)
    assert contents(dest) == undisturbed[order]
    assert sorted(marker.name for marker in markers.iterdir()) == ["prepare", "put"]


DRIVER = """
import sys, time
from pathlib import Path
import ray
from scaling.data.shards import convert as module, pipeline
from scaling.data.shards.datasink import ShardDatasink

class SlowSink(ShardDatasink):
    def _put(self, encoder, unfinished):
        time.sleep(0.5)
        return super()._put(encoder, unfinished)

def slowly(datasource, prepare, sink, num_tasks):
    sink.__class__ = SlowSink
    return pipeline.write_shards(datasource, prepare, sink, num_tasks)

module.write_shards = slowly
address, dest, *files = sys.argv[1:]
train, val, test = ([Path(file)] for file in files)
ray.init(address, log_to_driver=False)
module.convert(Path(dest), train=train, val=val, test=test, rows_per_shard=128, order="source")
"""


@pytest.mark.ray
def test_a_killed_driver_is_continued(sources, undisturbed, ray_cluster, tmp_path):
    import ray

    dest = tmp_path / "shards"
    files = [str(sources[split][0]) for split in ("train", "val", "test")]
    command = [sys.executable, "-c", DRIVER, ray.get_runtime_context().gcs_address, str(dest), *files]
    with subprocess.Popen(command, cwd=Path(__file__).parents[3]) as driver:
        deadline = time.monotonic() + 100
        while len(mtimes(dest)) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        driver.kill()
    assert not (dest / MANIFEST).exists()
    time.sleep(1)  # its workers end with it
    before = mtimes(dest)
    assert 3 <= len(before) < 12
    convert(dest, **sources, rows_per_shard=ROWS_PER_SHARD, order="source")
    after = mtimes(dest)
    assert {path for path in before if before[path] != after[path]} == set()
    assert contents(dest) == undisturbed["source"]


@pytest.mark.ray
@pytest.mark.parametrize("order", ["source", "shuffled"])
def test_a_full_disk_is_one_line_and_more_room_is_enough(
    order, sources, undisturbed, ray_cluster, small_disk, monkeypatch
):
    settings = {"rows_per_shard": ROWS_PER_SHARD, "order": order}
    size = sum(map(len, undisturbed[order].values()))
    disk = small_disk(int(0.75 * size))
    dest = disk / "shards"
    needed = r"shards: the disk is full: at least [0-9.]+ MB needed, [0-9.]+ MB free"
    with monkeypatch.context() as patch:
        patch.setattr(convert_module, "LEAST_RATIO", 5.0)
        with pytest.raises(UserError, match=needed):
            convert(dest, **sources, **settings)
    with monkeypatch.context() as patch:
        patch.setattr(convert_module, "LEAST_RATIO", 0.0)
        with pytest.raises(UserError, match=r"shards: no room: .*make room there and run the same command") as raised:
            convert(dest, **sources, **settings)
    assert "\n" not in str(raised.value)
    assert list(dest.rglob("*.tmp")) == []
    before = mtimes(dest)
    subprocess.run(["mount", "-o", f"remount,size={3 * size}", str(disk)], check=True)
    convert(dest, **sources, **settings)
    after = mtimes(dest)
    assert {path for path in before if before[path] != after[path]} == set()
    assert contents(dest) == undisturbed[order]


@pytest.mark.ray
def test_tasks_on_ray_answer_in_order_and_their_error_is_one_line(ray_cluster):
    def fail(item):
        raise UserError(f"{item}: is wrong")

    assert pipeline.map_on_ray(lambda item: item + 1, [3, 1, 2]) == [4, 2, 3]
    assert pipeline.map_on_ray(fail, []) == []
    with pytest.raises(UserError, match=r"^shard: is wrong$"), pipeline.task_errors("x"):
        pipeline.map_on_ray(fail, ["shard"])


def test_a_manifest_that_cannot_be_read_is_kept_and_an_unusable_one_is_replaced(sources, tmp_path, monkeypatch):
    dest = convert_here(tmp_path / "shards", sources, rows_per_shard=ROWS_PER_SHARD)
    before, written, read = contents(dest), (dest / MANIFEST).stat().st_mtime_ns, Folder.read

    def unreachable(folder, path, limit=None):
        if path == MANIFEST:
            raise OSError(errno.EIO, "Input/output error", folder.locate(path))
        return read(folder, path, limit)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "read", unreachable)
        with pytest.raises(UserError, match=r"manifest\.json: Input/output error: run it again"):
            convert_here(dest, sources, rows_per_shard=ROWS_PER_SHARD)
    assert contents(dest) == before
    assert (dest / MANIFEST).stat().st_mtime_ns == written
    (dest / MANIFEST).write_text("{")
    convert_here(dest, sources, rows_per_shard=ROWS_PER_SHARD)
    assert contents(dest) == before


@pytest.mark.parametrize("order", ["source", "shuffled"])
@pytest.mark.parametrize("kept", [0.3, 0.9, 0.999])
def test_a_source_that_is_cut_short_publishes_nothing(kept, order, sources, tmp_path, monkeypatch):
    without_ray(monkeypatch)
    short = tmp_path / "short.h5"
    short.write_bytes(sources["train"][0].read_bytes())
    os.truncate(short, int(kept * short.stat().st_size))
    dest = tmp_path / "shards"
    with pytest.raises(UserError, match=r"short\.h5") as raised:
        convert(dest, **sources | {"train": [short]}, rows_per_shard=ROWS_PER_SHARD, order=order)
    assert "\n" not in str(raised.value)
    assert not (dest / MANIFEST).exists()


def test_a_chunk_that_cannot_be_read_is_named(sources, tmp_path, monkeypatch):
    """A damaged chunk shows only when its rows are read."""
    without_ray(monkeypatch)
    bad = tmp_path / "bad.h5"
    bad.write_bytes(sources["train"][0].read_bytes())
    with h5py.File(bad, "a") as file:
        flux = file[FLUX_ARRAY][:]
        del file[FLUX_ARRAY]
        file.create_dataset(FLUX_ARRAY, data=flux, chunks=(64, 1024), fletcher32=True)
        chunk = file[FLUX_ARRAY].id.get_chunk_info(5)  # none of the 16 rows that the fingerprint reads are in it
    with open(bad, "r+b") as raw:
        raw.seek(chunk.byte_offset + 100)
        raw.write(b"\xff\x00\xff\x00")
    dest = tmp_path / "shards"
    with pytest.raises(UserError, match=r"bad\.h5: .*rows 256 to \d+"):
        convert(dest, **sources | {"train": [bad]}, rows_per_shard=ROWS_PER_SHARD)
    assert not (dest / MANIFEST).exists()
    assert list(dest.rglob("*.tmp")) == []


def test_shards_that_are_lost_afterwards_are_made_again(sources, undisturbed, tmp_path, monkeypatch):
    without_ray(monkeypatch)
    for order in ("source", "shuffled"):
        dest = tmp_path / order
        settings = {"rows_per_shard": ROWS_PER_SHARD, "order": order}
        convert(dest, **sources, **settings)
        (dest / "train" / "part-00003.parquet").unlink()
        os.truncate(dest / "val" / "part-00000.parquet", 3000)
        assert len(verify(dest)) == 2
        convert(dest, **sources, **settings)
        assert contents(dest) == undisturbed[order]
