import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tracemalloc

import h5py
import numpy as np
import pandas as pd
import pytest

from scaling.data.hdf5.reader import ERROR_ARRAY, FLUX_ARRAY, MASK_ARRAY, open_spectra
from scaling.data.hdf5.writer import chunk_shape, file_bytes, write_spectra
from scaling.data.simulated.rows import COLUMNS, Simulation, simulate_rows, wavelength_grid
from scaling.data.simulated.writer import write_simulation
from scaling.errors import UserError

SMALL = Simulation(train=300, val=64, test=70, pixels=1024, train_files=2)


def test_files_have_the_layout_of_real_ones(tmp_path):
    paths = write_simulation(tmp_path, SMALL)
    names = [[path.parent.name for path in paths[split]] for split in ("train", "val", "test")]
    assert names == [["train_0", "train_1"], ["val"], ["test"]]
    frames = [pd.read_hdf(path) for path in paths["train"]]
    assert [list(frame.columns) for frame in frames] == [list(COLUMNS)] * 2
    assert pd.concat(frames)["id"].tolist() == list(range(300))
    assert frames[0]["id"].dtype == frames[0]["exp_count"].dtype == np.int64
    expected = simulate_rows(SMALL, "train", 150, 300)
    pd.testing.assert_frame_equal(frames[1], expected.params, check_exact=True)
    with h5py.File(paths["train"][1]) as file:
        assert file[FLUX_ARRAY].dtype == file["spectrumdataset/wave"].dtype == np.float64
        assert file[MASK_ARRAY].dtype == np.int64
        assert not file[MASK_ARRAY][:].any()
        assert file["spectrumdataset/wave_edges"].shape == (1025,)
        assert np.array_equal(file[FLUX_ARRAY][:], expected.flux)
        fields = file["dataset/params/table"].dtype.fields
        blocks = {
            field.base.str: field.shape for name, (field, _) in fields.items() if name.startswith("values_block_")
        }
        assert blocks == {"<f8": (32,), "<i8": (2,), "|S5": (1,)}
    assert list(tmp_path.rglob("*.tmp")) == []


@pytest.mark.parametrize(
    ("rows", "chunks"), [(256, None), (257, (64, 4096)), (1025, (1025, 4096)), (65537, (4096, 4096))]
)
def test_chunks_follow_the_real_writers_rule(rows, chunks):
    assert chunk_shape(rows, 4096) == chunks


def test_writing_again_keeps_what_is_there(tmp_path):
    paths = write_simulation(tmp_path, SMALL)
    before = {path: path.stat().st_mtime_ns for files in paths.values() for path in files}
    calls = []
    paths["val"][0].unlink()
    write_simulation(tmp_path, SMALL, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(434, 434)]
    after = {path: path.stat().st_mtime_ns for path in before}
    assert {path for path in before if before[path] != after[path]} == {paths["val"][0]}


def test_other_files_are_not_overwritten(tmp_path):
    paths = write_simulation(tmp_path, SMALL)
    with pytest.raises(UserError, match=r"train_0/dataset\.h5 holds another simulation"):
        write_simulation(tmp_path, Simulation(train=300, val=64, test=70, pixels=1024, train_files=2, seed=1))
    with h5py.File(paths["train"][0], "a") as file:
        del file.attrs["simulation"]
    with pytest.raises(UserError, match="was not written by"):
        write_simulation(tmp_path, SMALL)


def test_an_interrupted_file_leaves_nothing(tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_simulation(tmp_path, SMALL, progress=stop)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


KILLED = """
import os, signal, sys
from pathlib import Path
from scaling.data.simulated.writer import write_simulation
from scaling.data.simulated.rows import Simulation
done = 0
def kill(rows, total):
    if rows > 64:
        os.kill(os.getpid(), signal.SIGKILL)
write_simulation(Path(sys.argv[1]), Simulation(train=64, val=64, test=70, pixels=1024), kill)
"""


def test_a_killed_run_is_continued_and_leaves_nothing(tmp_path):
    ended = subprocess.run([sys.executable, "-c", KILLED, tmp_path], check=False)
    assert ended.returncode == -signal.SIGKILL
    finished = tmp_path / "train_0" / "dataset.h5"
    before = finished.stat().st_mtime_ns
    assert len(list(tmp_path.rglob("*.tmp"))) == 1
    write_simulation(tmp_path, Simulation(train=64, val=64, test=70, pixels=1024))
    assert finished.stat().st_mtime_ns == before
    assert list(tmp_path.rglob("*.tmp")) == []


def test_only_what_nobody_writes_any_more_is_removed(tmp_path):
    """A name holds the writer's host and process; an older scheme held the process alone."""
    folder, host, day = tmp_path / "val", socket.gethostname(), 24 * 3600
    folder.mkdir()
    names = {
        f".dataset.h5.{host}.{os.getppid()}.tmp": True,  # alive
        f".dataset.h5.{host}.{2**22 + 1}.tmp": False,  # no process can have this number
        ".dataset.h5.elsewhere.123.tmp": True,
        ".dataset.h5.else.where.123.tmp": False,  # since yesterday
        ".dataset.h5.123.tmp": False,
        ".other.h5.123.tmp": True,
    }
    for name in names:
        (folder / name).touch()
    yesterday = time.time() - day
    os.utime(folder / ".dataset.h5.else.where.123.tmp", (yesterday, yesterday))
    write_simulation(tmp_path, Simulation(train=1, val=1, test=1, pixels=1024))
    assert {path.name for path in folder.glob(".*")} == {name for name, stays in names.items() if stays}


FILLED = """
import resource, sys
from pathlib import Path
from scaling.__main__ import main
resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, 4_000_000))
sys.exit(main(["simulate", sys.argv[1], "--train", sys.argv[2], "--val", "1", "--test", "1", "--pixels", "1024"]))
"""


@pytest.mark.parametrize("rows", [400, 1100])  # in chunks of 64 rows, and in one chunk
def test_a_disk_that_fills_up_is_one_clear_line(tmp_path, rows):
    """A limit on a file's size stands for the disk: the write fails in the same way."""
    ended = subprocess.run(
        [sys.executable, "-c", FILLED, tmp_path / "out", str(rows)], check=False, capture_output=True, text=True
    )
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert re.search(r"train_0/dataset\.h5: the disk is full: at least [\d.]+ MB needed", ended.stderr)
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_what_does_not_fit_is_not_begun(tmp_path):
    with pytest.raises(UserError, match=r"GB needed, .* free"):
        write_simulation(tmp_path / "out", Simulation(train=10**10))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("rows", "pixels"), [(1, 1024), (200, 4096), (500, 4096), (1500, 1024)])
def test_the_room_a_file_takes_is_known(tmp_path, rows, pixels):
    path = write_simulation(tmp_path, Simulation(train=rows, val=1, test=1, pixels=pixels))["train"][0]
    assert 0.9 * (file_bytes(rows, pixels) - 250_000) < path.stat().st_size <= file_bytes(rows, pixels)


@pytest.mark.ray
def test_files_written_side_by_side_are_the_same(tmp_path, ray_cluster):
    serial, calls = write_simulation(tmp_path / "serial", SMALL), []
    (tmp_path / "parallel" / "val").mkdir(parents=True)
    kept = shutil.copy(serial["val"][0], tmp_path / "parallel" / "val")
    before = os.stat(kept).st_mtime_ns
    parallel = write_simulation(
        tmp_path / "parallel", SMALL, progress=lambda done, total: calls.append((done, total)), parallel=True
    )
    for split, files in serial.items():
        assert len(files) == len(parallel[split])
        for one, two in zip(files, parallel[split], strict=True):
            with h5py.File(one) as first, h5py.File(two) as second:
                for name in (FLUX_ARRAY, ERROR_ARRAY, "spectrumdataset/wave", "dataset/params/table"):
                    assert first[name][:].tobytes() == second[name][:].tobytes()
                assert dict(first.attrs) == dict(second.attrs)
    assert os.stat(kept).st_mtime_ns == before
    assert calls[-1] == (434, 434)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


@pytest.mark.ray
def test_a_mistake_in_a_task_is_one_line(tmp_path, ray_cluster):
    (tmp_path / "train_1").symlink_to("/proc")  # where there is no room
    with pytest.raises(UserError, match=r"train_1/dataset\.h5: the disk is full: .*, 0 bytes free") as raised:
        write_simulation(tmp_path, SMALL, parallel=True)
    assert "\n" not in str(raised.value)
    (tmp_path / "train_0" / "dataset.h5").unlink(missing_ok=True)
    (tmp_path / "train_0" / "dataset.h5").mkdir(parents=True)  # a folder where a file is to be
    with pytest.raises(UserError, match="is a folder"):
        write_simulation(tmp_path, SMALL, parallel=True)


def test_many_rows_take_no_more_memory_than_their_parameters(tmp_path):
    """Chunks larger than what is written at once cost nothing: 64 MB of spectra in one chunk, a few MB of memory."""
    grid, rows = wavelength_grid(1024), simulate_rows(Simulation(pixels=1024), "train", 0, 64)
    peaks = []
    tracemalloc.start()
    for pieces in (20, 60):
        tracemalloc.reset_peak()
        with write_spectra(tmp_path / "dataset.h5", *grid, num_rows=64 * pieces, tag="") as append:
            for _ in range(pieces):
                append(rows.flux, rows.error, rows.params)
        peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
    assert peaks[1] - peaks[0] < 3 * 40 * 64 * 300  # parameters, at most three times over


@pytest.mark.parametrize(
    ("field", "value"),
    [("pixels", 1000), ("mag_range", (22.5, 20.5)), ("train_files", 10**6)],
)
def test_fields_are_checked(field, value):
    with pytest.raises(UserError, match=rf"Simulation\.{field} = .*: give"):
        Simulation(**{field: value})


def test_simulated_files_open(tmp_path):
    paths = write_simulation(tmp_path, SMALL)
    with open_spectra(paths["test"][0]) as spectra:
        assert (spectra.num_rows, spectra.num_pixels, spectra.chunk_rows) == (70, 1024, 1)
