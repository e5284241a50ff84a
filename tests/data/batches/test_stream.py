"""The streamed order is a function of (seed, epoch) alone; what arrives are its rows, whoever asks and wherever they begin."""

import dataclasses
import itertools
import os
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import ray

from scaling.data.batches.noise import FixedNoise
from scaling.data.batches.stream import WINDOWS_AHEAD, Spectra, SpectrumStream, load_window
from scaling.data.batches.stream_order import STREAMS, StreamOrder
from scaling.data.shards import convert as conversion
from scaling.data.shards.convert import convert
from scaling.data.shards.manifest import Manifest, Shard
from scaling.data.simulated.writer import Simulation, write_simulation
from scaling.errors import UserError
from tests.data.shards.converting import damage, read_split, run_here

NOISE = FixedNoise(seed=3, level=1.0)
NUM_SPECTRA, BATCH = 701, 48
LABELS = ("log_g", "T_eff")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Shards of 16 spectra, so that few spectra have many row groups and windows."""
    root = tmp_path_factory.mktemp("stream")
    files = write_simulation(root / "hdf5", Simulation(train=1000, val=1, test=1, pixels=1024))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conversion, "map_on_ray", run_here)
        convert(root / "shards", **files, rows_per_shard=16, order="source")
    return Manifest.load(root / "shards")


def shard_set(like, sizes):
    """A manifest of training shards of these sizes, for what needs no files."""
    shards = [Shard(file=f"train/part-{i:05d}.parquet", rows=rows, checksum="") for i, rows in enumerate(sizes)]
    return dataclasses.replace(like, splits={**like.splits, "train": shards})


def stream(manifest, order, rank=0, world=1, noise=NOISE):
    return SpectrumStream(manifest, order, labels=LABELS, noise=noise, rank=rank, world=world, readers=1)


def joined(pieces):
    return np.concatenate([piece.flux for piece in pieces] or [np.empty((0, 1024), np.float32)])


@pytest.mark.parametrize(
    ("num_spectra", "batch_size"),
    [(1, 1), (100, 1), (701, 48), (701, 100_000), (4096, 256), (20_000, 48), (20_000, 256), (20_000, 9999)],
)
def test_an_epoch_visits_every_row_of_the_prefix_once_in_even_batches(small, num_spectra, batch_size):
    order = StreamOrder(shard_set(small, [4096] * 5), num_spectra, batch_size, seed=1)
    assert order.steps_per_epoch == -(-num_spectra // batch_size)
    epochs = [
        [order.rows(step) for step in range(e * order.steps_per_epoch, (e + 1) * order.steps_per_epoch)] for e in (0, 1)
    ]
    for epoch, batches in enumerate(epochs):
        assert sorted(np.concatenate(batches)) == list(range(num_spectra))
        sizes = [len(batch) for batch in batches]
        assert max(sizes) - min(sizes) <= STREAMS
        steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
        assert sizes == [sum(stop - start for start, stop in order.shares(step)) for step in steps]
    if num_spectra > 1000:
        assert not np.array_equal(np.concatenate(epochs[0]), np.concatenate(epochs[1]))


def test_windows_come_in_the_order_they_are_needed_and_not_all_at_once(small):
    order = StreamOrder(shard_set(small, [4096] * 60), 240_000, 256, seed=1)
    held, steps = {stream: [] for stream in range(STREAMS)}, []
    windows = order.windows_from(0, range(STREAMS))
    for step in range(order.steps_per_epoch):
        arrived = 0
        for stream_number, (_, stop) in enumerate(order.shares(step)):
            while not held[stream_number] or held[stream_number][-1].start + held[stream_number][-1].rows < stop:
                window = next(windows)
                held[window.stream].append(window)
                arrived += 1
        steps.append(arrived)
    assert steps[0] == STREAMS
    assert max(steps[1:]) <= 2
    assert next(windows).epoch == 1


def test_a_source_sorted_by_its_label_is_mixed_by_its_windows(small):
    """Means of batches of 256 scatter 2.1 times as much as under a full shuffle; a seventh of what they do without one."""
    num_spectra = 512 * 2000
    order = StreamOrder(shard_set(small, [4096] * 250), num_spectra, 256, seed=0)
    label = np.linspace(-1, 1, num_spectra)
    streams = {stream: [] for stream in range(STREAMS)}
    for window in itertools.takewhile(lambda window: window.epoch == 0, order.windows_from(0, range(STREAMS))):
        groups, places = order.window_groups(window)
        rows = np.concatenate([group.first_row + np.arange(group.rows) for group in groups])
        streams[window.stream].append(label[rows[np.argsort(places)]])
    labels = [np.concatenate(windows) for windows in streams.values()]
    means = np.array(
        [
            np.concatenate([labels[stream][a:b] for stream, (a, b) in enumerate(order.shares(step))]).mean()
            for step in range(order.steps_per_epoch)
        ]
    )
    full_shuffle = label.std() / np.sqrt(256)
    assert 1.9 < means.std() / full_shuffle < 2.3
    assert means.std() < label.std() / 7


@pytest.mark.ray
@pytest.mark.slow
def test_what_arrives_is_the_orders_rows_for_any_workers_from_any_step(small, ray_cluster):
    flux, error, params = read_split(small.dest, "train")
    noisy = NOISE.add(flux, error, split="train", first_row=0)
    order = StreamOrder(small, NUM_SPECTRA, BATCH, seed=5)
    steps = range(11, 19)  # from the middle of an epoch of 15 steps into the next
    for world in (1, 2, 4):
        workers = [stream(small, order, rank, world) for rank in range(world)]
        with ThreadPoolExecutor(world) as pool:
            shares = list(pool.map(lambda worker: [worker.take(step) for step in steps], workers))
        for index, step in enumerate(steps):
            rows, edges = order.rows(step), np.cumsum([0] + [stop - start for start, stop in order.shares(step)])
            for rank in range(world):
                expected = np.concatenate([rows[edges[v] : edges[v + 1]] for v in range(rank, STREAMS, world)])
                pieces = shares[rank][index]
                assert np.array_equal(joined(pieces), noisy[expected])
                labels = np.concatenate([np.empty((0, 2)), *(piece.labels for piece in pieces)])
                assert np.array_equal(labels, params[list(LABELS)].to_numpy()[expected])
        for worker in workers:
            worker.close()


@pytest.mark.ray
def test_without_fixed_noise_flux_and_error_come_apart(small, ray_cluster):
    flux, error, _ = read_split(small.dest, "train")
    order = StreamOrder(small, NUM_SPECTRA, BATCH, seed=5)
    clean = stream(small, order, noise=None)
    pieces = clean.take(4)
    assert np.array_equal(joined(pieces), flux[order.rows(4)])
    assert np.array_equal(np.concatenate([piece.error for piece in pieces]), error[order.rows(4)])
    assert np.array_equal(joined(clean.take(2)), flux[order.rows(2)])  # back, as a test of a checkpoint may go
    clean.close()


@pytest.mark.ray
def test_a_trial_that_holds_every_cpu_is_served(small, ray_cluster):
    @ray.remote(num_cpus=ray_cluster["CPU"])
    def trial(manifest):
        order = StreamOrder(manifest, NUM_SPECTRA, BATCH, seed=5)
        batches = SpectrumStream(manifest, order, labels=LABELS, noise=None, rank=0, world=1, readers=2)
        rows = [sum(len(piece.labels) for piece in batches.take(step)) for step in range(order.steps_per_epoch)]
        batches.close()
        return sum(rows)

    assert ray.get(trial.remote(small), timeout=60) == NUM_SPECTRA


@pytest.mark.ray
def test_few_windows_are_read_ahead_of_a_trial_that_is_slow(small, tmp_path, ray_cluster):
    @ray.remote(num_cpus=0)
    def read(window, *_):
        (tmp_path / "-".join(map(str, (window.epoch, window.stream, window.number)))).touch()
        return Spectra(np.zeros((window.rows, 1024), np.float32), None, np.zeros((window.rows, 2)))

    def loaded():
        return len(list(tmp_path.iterdir()))

    order = StreamOrder(small, NUM_SPECTRA, BATCH, seed=5)
    batches = SpectrumStream(small, order, labels=LABELS, noise=NOISE, rank=0, world=1, readers=3)
    batches._read = read
    batches.take(0)  # from a window of each of the streams
    deadline = time.monotonic() + 30
    while loaded() < STREAMS + WINDOWS_AHEAD and time.monotonic() < deadline:
        batches._read_ahead()  # as each step does
        time.sleep(0.05)
    time.sleep(1)
    assert loaded() == STREAMS + WINDOWS_AHEAD
    batches.close()


@pytest.mark.ray
def test_a_reader_that_is_killed_is_replaced(small, tmp_path, ray_cluster):
    @ray.remote(num_cpus=0)
    def read(window, *settings):
        mark = tmp_path / f"{window.epoch}-{window.stream}-{window.number}"
        if window.stream == 3 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return load_window(window, *settings)

    order = StreamOrder(small, NUM_SPECTRA, BATCH, seed=5)
    undisturbed, batches = stream(small, order), stream(small, order)
    batches._read = read
    for step in range(3):
        assert np.array_equal(joined(batches.take(step)), joined(undisturbed.take(step)))
    assert list(tmp_path.iterdir())


@pytest.mark.ray
def test_a_damaged_shard_is_a_users_mistake_of_one_line(small, tmp_path, ray_cluster):
    dest = tmp_path / "shards"
    shutil.copytree(small.dest, dest)
    damage(dest / "train" / "part-00007.parquet", at=0.3)
    order = StreamOrder(Manifest.load(dest), NUM_SPECTRA, BATCH, seed=5)
    batches = stream(Manifest.load(dest), order)
    with pytest.raises(UserError, match=r"part-00007\.parquet: this shard cannot be read") as raised:
        [batches.take(step) for step in range(order.steps_per_epoch)]
    assert "\n" not in str(raised.value)
    batches.close()


def test_another_shard_in_its_place_is_noticed(small, tmp_path):
    dest = tmp_path / "shards"
    shutil.copytree(small.dest, dest)
    shutil.copy(dest / "train" / "part-00003.parquet", dest / "train" / "part-00002.parquet")
    manifest = Manifest.load(dest)
    order = StreamOrder(manifest, 48, 48, seed=5)
    windows = [window for _, window in zip(range(3), order.windows_from(0, range(STREAMS)), strict=False)]
    read = [load_window(window, order, 1024, LABELS, None) for window in windows]
    (found,) = [outcome for outcome in read if isinstance(outcome, str)]
    assert "part-00002.parquet: row group 0 does not hold rows 32 to 47" in found


def test_more_workers_than_streams_are_refused(small, monkeypatch):
    order = StreamOrder(small, NUM_SPECTRA, BATCH, seed=5)
    with pytest.raises(UserError, match="9 workers of one trial"):
        stream(small, order, world=9)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(UserError, match="Ray is not there"):
        stream(small, order)
