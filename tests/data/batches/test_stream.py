"""The streamed order is a function of (seed, epoch) alone; what arrives are its rows, whoever asks and wherever they begin."""

import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from scaling.data.batches import FixedNoise, Worker
from scaling.data.batches import stream as module
from scaling.data.batches.stream import AHEAD, LANES, SpectrumStream, StreamOrder
from scaling.data.shards.convert import convert
from scaling.data.shards.manifest import Manifest, Shard
from scaling.data.simulated.writer import Simulation, write_simulation
from scaling.errors import UserError
from tests.data.shards.converting import damage, read_split

NOISE = FixedNoise(seed=3, level=1.0)
NUM_SPECTRA, BATCH = 701, 48
LABELS = ("log_g", "T_eff")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Shards of 16 spectra, so that few spectra have many shards."""
    root = tmp_path_factory.mktemp("stream")
    files = write_simulation(root / "hdf5", Simulation(train=1000, val=1, test=1, pixels=1024))
    convert(root / "shards", **files, rows_per_shard=16, order="source", on_ray=False)
    return Manifest.load(root / "shards")


def shard_set(like, sizes):
    """A manifest of training shards of these sizes, for what needs no files."""
    shards = [Shard(file=f"train/{i:05d}.parquet", rows=rows, checksum="0" * 32) for i, rows in enumerate(sizes)]
    return like.model_copy(update={"splits": {**like.splits, "train": shards}, "rows_per_shard": sizes[0]})


def stream(order, rank=0, world=1, noise=NOISE):
    worker = Worker(cache_root=Path(), device=torch.device("cpu"), rank=rank, world=world)
    return SpectrumStream(order, LABELS, noise, worker)


def rows_of(order, step):
    """Row numbers of a step's global batch, lane by lane."""
    parts = [np.empty(0, np.int64)]
    for (start, stop), lane in zip(order.shares(step), order.lanes(step // order.steps_per_epoch), strict=True):
        for visit in lane:
            mine = slice(max(0, start - visit.start), max(0, stop - visit.start))
            parts.append(visit.shard * order.manifest.rows_per_shard + order.shuffle(visit)[mine])
    return np.concatenate(parts)


def take(batches, step):
    """Spectra and labels of a step."""
    parts = [(rows.spectra.numpy()[rows.chosen.numpy()], rows.labels) for rows in batches.take(step)]
    if not parts:
        return np.empty((0, 1, 1024), np.float32), np.empty((0, 2))
    spectra, labels = zip(*parts, strict=True)
    return np.concatenate(spectra), np.concatenate(labels)


@pytest.mark.parametrize(
    ("num_spectra", "batch_size"),
    [
        (1, 1),
        (100, 1),
        (701, 48),
        (701, 100_000),
        (4096, 256),
        (4097, 256),
        (20_000, 48),
        (20_000, 256),
        (20_000, 9999),
        (40_000, 256),
    ],
)
def test_an_epoch_visits_every_row_of_the_prefix_once_in_even_batches(small, num_spectra, batch_size):
    order = StreamOrder(shard_set(small, [4096] * 10), num_spectra, batch_size, seed=1)
    assert order.steps_per_epoch == -(-num_spectra // batch_size)
    epochs = []
    for epoch in (0, 1):
        steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
        batches = [rows_of(order, step) for step in steps]
        assert sorted(np.concatenate(batches)) == list(range(num_spectra))
        sizes = [len(batch) for batch in batches]
        assert max(sizes) - min(sizes) <= LANES
        assert sizes == [sum(stop - start for start, stop in order.shares(step)) for step in steps]
        epochs.append(np.concatenate(batches))
    if num_spectra > 1000:
        assert not np.array_equal(*epochs)


def test_a_source_sorted_by_its_label_is_mixed_by_its_lanes(small):
    """Means of batches of 256 scatter 4.7 times as much as under a full shuffle; a third of what they do without one."""
    num_spectra = 4096 * 250
    order = StreamOrder(shard_set(small, [4096] * 250), num_spectra, 256, seed=0)
    label = np.linspace(-1, 1, num_spectra)
    lanes = [
        np.concatenate([label[visit.shard * 4096 + order.shuffle(visit)] for visit in lane]) for lane in order.lanes(0)
    ]
    means = np.array(
        [
            np.concatenate([lanes[lane][a:b] for lane, (a, b) in enumerate(order.shares(step))]).mean()
            for step in range(order.steps_per_epoch)
        ]
    )
    full_shuffle = label.std() / np.sqrt(256)
    assert 4.4 < means.std() / full_shuffle < 5.9
    assert means.std() < label.std() / 2.5


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_what_arrives_is_the_orders_rows_for_any_workers_from_any_step(small, world):
    flux, error, params = read_split(small.folder.local, "train")
    noisy = NOISE.add(flux, error, split="train", first_row=0)
    order = StreamOrder(small, NUM_SPECTRA, BATCH, seed=5)
    workers = [stream(order, rank, world) for rank in range(world)]
    for step in range(11, 19):  # from the middle of an epoch of 15 steps into the next
        rows, edges = rows_of(order, step), np.cumsum([0] + [stop - start for start, stop in order.shares(step)])
        for rank, worker in enumerate(workers):
            expected = np.concatenate([rows[edges[v] : edges[v + 1]] for v in range(rank, LANES, world)])
            spectra, labels = take(worker, step)
            assert np.array_equal(spectra[:, 0], noisy[expected])
            assert np.array_equal(labels, params[list(LABELS)].to_numpy()[expected])
    for worker in workers:
        worker.close()


def test_without_fixed_noise_flux_and_error_come_side_by_side(small):
    flux, error, _ = read_split(small.folder.local, "train")
    order = StreamOrder(small, NUM_SPECTRA, BATCH, seed=5)
    clean = stream(order, noise=None)
    for step in (4, 5, 2, 14, 15, 700):  # back, as a test of a checkpoint may go, and over the end of an epoch
        spectra, _ = take(clean, step)
        assert np.array_equal(spectra[:, 0], flux[rows_of(order, step)])
        assert np.array_equal(spectra[:, 1], error[rows_of(order, step)])
    clean.close()


def test_a_batch_may_be_larger_than_what_is_held(small):
    flux, _, _ = read_split(small.folder.local, "train")
    order = StreamOrder(small, 1000, 1000, seed=5)
    clean = stream(order, noise=None)
    assert np.array_equal(take(clean, 0)[0][:, 0], flux[rows_of(order, 0)])
    clean.close()


def test_two_shards_a_lane_are_held_whatever_the_speed_of_the_trial(small, monkeypatch):
    held, most, lock, decode = set(), [0], threading.RLock(), module._decode_shard

    class Counted(module.Decoded):
        def __del__(self):
            with lock:
                held.discard(id(self))

    def counted(*arguments):
        found = Counted(*decode(*arguments))
        with lock:
            held.add(id(found))
            most[0] = max(most[0], len(held))
        return found

    monkeypatch.setattr(module, "_decode_shard", counted)
    order = StreamOrder(small, NUM_SPECTRA, BATCH, seed=5)
    batches = stream(order)
    for step in range(2 * order.steps_per_epoch):
        take(batches, step)
        if step % 5 == 0:
            time.sleep(0.1)
    assert AHEAD * LANES / 2 < most[0] <= AHEAD * LANES
    batches.close()


def test_a_damaged_shard_is_a_users_mistake_of_one_line(small, tmp_path):
    dest = tmp_path / "shards"
    shutil.copytree(small.folder.local, dest)
    damage(dest / "train" / "part-00007.parquet", at=0.3)
    order = StreamOrder(Manifest.load(dest), NUM_SPECTRA, BATCH, seed=5)
    batches = stream(order)
    with pytest.raises(UserError, match=r"part-00007\.parquet: this shard cannot be read") as raised:
        [take(batches, step) for step in range(order.steps_per_epoch)]
    assert "\n" not in str(raised.value)
    batches.close()


@pytest.mark.parametrize("other", ["another shard", "none"])
def test_another_shard_or_none_in_its_place_is_noticed(small, tmp_path, other):
    dest = tmp_path / "shards"
    shutil.copytree(small.folder.local, dest)
    os.remove(dest / "train" / "part-00002.parquet")
    if other != "none":
        shutil.copy(dest / "train" / "part-00003.parquet", dest / "train" / "part-00002.parquet")
    order = StreamOrder(Manifest.load(dest), 48, 48, seed=5)
    batches = stream(order)
    with pytest.raises(UserError, match=r"part-00002\.parquet"):
        take(batches, 0)
    batches.close()


def test_more_workers_than_lanes_are_refused(small):
    order = StreamOrder(small, NUM_SPECTRA, BATCH, seed=5)
    with pytest.raises(UserError, match="9 workers of one trial"):
        stream(order, world=9)
