"""Batches are a function of the step, wherever the spectra are held and however many workers share them."""

import mmap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from scaling.data.batches import (
    DataRules,
    EvaluationSplit,
    FixedNoise,
    Standardisation,
    Worker,
    evaluation_pin,
    gather,
    training_batches,
)
from scaling.data.batches import training as module
from scaling.errors import UserError
from tests.data.shards.converting import read_split

CPU = torch.device("cpu")
FIXED, FRESH = DataRules(noise="fixed"), DataRules(noise="fresh")


@pytest.fixture
def open_batches(shards, cache_root):
    opened = []

    def open_one(rules=FIXED, num_spectra=200, batch_size=64, *, access="auto", device=CPU, **where):
        worker = Worker(cache_root=cache_root, device=device, **where)
        opened.append(training_batches(shards, rules, num_spectra, batch_size, seed=3, worker=worker, access=access))
        return opened[-1]

    yield open_one
    for batches in opened:
        batches.close()


@pytest.mark.parametrize("access", ["mapped", "resident"])
@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("rules", [FIXED, FRESH], ids=["fixed", "fresh"])
def test_workers_share_the_global_batch_of_one(open_batches, rules, world, access):
    whole = open_batches(rules)
    parts = [open_batches(rules, rank=rank, world=world, access=access) for rank in range(world)]
    for step in (11, 0, 3, 4):
        flux, labels = whole.batch(step)
        assert whole.global_rows(step) == len(flux) == (8 if step in (3, 11) else 64)
        for rank, part in enumerate(parts):
            share, share_labels = part.batch(step)
            assert torch.equal(share, flux[rank::world])
            assert torch.equal(share_labels, labels[rank::world])
            assert part.global_rows(step) == len(flux)


def test_an_epoch_visits_every_spectrum_once_and_prefixes_nest(open_batches):
    def visited(batches, epoch):
        steps = range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch)
        return torch.cat([batches.batch(step)[0] for step in steps])

    def rows(flux):
        return {row.numpy().tobytes() for row in flux}

    small, large = open_batches(num_spectra=130), open_batches(num_spectra=300)
    first, second = visited(small, 0), visited(small, 1)
    assert len(first) == len(rows(first)) == 130
    assert rows(first) == rows(second)
    assert not torch.equal(first, second)
    assert rows(first) < rows(visited(large, 0))


def test_a_batch_is_the_shards_rows_with_their_noise(shards, open_batches):
    flux, error, params = read_split(shards, "train")
    standardisation = Standardisation.of(shards, FIXED)
    noisy = FixedNoise(FIXED.noise_seed, FIXED.noise_level).add(flux, error, split="train", first_row=0)
    expected = (noisy - standardisation.flux_offset) / standardisation.flux_scale
    batches = open_batches()
    rows = np.random.Generator(np.random.Philox(key=[3, 1])).permutation(200)[64:128]
    found, labels = batches.batch(5)
    assert np.array_equal(found.numpy(), expected[rows])
    assert np.array_equal(labels.numpy(), standardisation.normalise_labels(params[["log_g"]].to_numpy()[rows]))


@pytest.mark.parametrize("rules", [FIXED, FRESH], ids=["fixed", "fresh"])
def test_reading_ahead_changes_no_batch(open_batches, monkeypatch, rules):
    asked = []
    original = gather.ReadAhead.ask_for
    monkeypatch.setattr(gather.ReadAhead, "ask_for", lambda self, rows: (asked.append(rows), original(self, rows)))
    monkeypatch.setattr(gather.ReadAhead, "useful", True)
    eager = open_batches(rules, 300, rank=1, world=2)
    resident = open_batches(rules, 300, rank=1, world=2, access="resident")
    for step in range(6):
        assert torch.equal(eager.batch(step)[0], resident.batch(step)[0])
    assert [list(rows) for rows in asked] == [list(eager.rows(step)[1::2]) for step in (1, 2, 3, 4, 6)]


def test_reading_ahead_begins_when_a_gather_waits_for_the_disk_and_ends_when_none_does(monkeypatch):
    faults = iter([0, 0, 0, 3, *[3] * 1000])
    monkeypatch.setattr(gather.resource, "getrusage", lambda _: SimpleNamespace(ru_majflt=next(faults)))
    ahead = gather.ReadAhead(np.frombuffer(mmap.mmap(-1, 4096), "<f4").reshape(8, 1, 128))
    seen = []
    for _ in range(gather.READ_AHEAD_BATCHES + 3):
        with ahead.watch():
            pass
        seen.append(ahead.useful)
    assert seen == [False] + [True] * gather.READ_AHEAD_BATCHES + [False] * 2


def test_streamed_batches_with_their_noise_do_not_depend_on_the_workers(open_batches):
    steps = (5, 6, 7, 8)

    def batches_of(world):
        workers = [
            open_batches(FRESH, num_spectra=290, rank=rank, world=world, access="streamed") for rank in range(world)
        ]
        with ThreadPoolExecutor(world) as pool:
            shares = list(pool.map(lambda worker: [worker.batch(step) for step in steps], workers))
        for batches in workers:
            batches.close()
        sizes = [workers[0].global_rows(step) for step in steps]
        assert sum(workers[0].global_rows(step) for step in range(5, 10)) == 290
        together = [[torch.cat(parts) for parts in zip(*step, strict=True)] for step in zip(*shares, strict=True)]
        assert [len(labels) for _, labels in together] == sizes
        return [(flux[flux[:, 0].argsort()], labels[flux[:, 0].argsort()]) for flux, labels in together]

    alone, shared = batches_of(1), batches_of(2)
    for (flux, labels), (shared_flux, shared_labels) in zip(alone, shared, strict=True):
        assert torch.equal(flux, shared_flux)
        assert torch.equal(labels, shared_labels)


def test_streamed_spectra_are_those_of_the_map(open_batches):
    mapped = open_batches()
    streamed = open_batches(access="streamed")
    everything = [torch.cat([b.batch(step)[0] for step in range(b.steps_per_epoch)]) for b in (mapped, streamed)]
    by_first_pixel = [flux[flux[:, 0].argsort()] for flux in everything]
    assert torch.equal(*by_first_pixel)


@pytest.mark.parametrize(
    ("access", "share", "free", "reserved", "held"),
    [
        ("auto", 1.0, 150, 50, True),
        ("auto", 1.0, 149, 50, False),
        ("auto", 0.375, 400, 50, True),
        ("auto", 0.37, 400, 50, False),
        ("auto", 1.0, 100, 0, True),
        ("mapped", 1.0, 400, 0, False),
        ("resident", 0.375, 400, 50, True),
    ],
)
def test_a_prefix_is_resident_where_it_fits_beside_the_step(monkeypatch, access, share, free, reserved, held):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 400))
    worker = Worker(cache_root=Path(), device=torch.device("cuda", 0), device_share=share, reserved=reserved)
    assert module._goes_to_device(100, worker, access) is held


@pytest.mark.parametrize(("share", "free", "reserved"), [(1.0, 99, 0), (0.24, 400, 0), (1.0, 149, 50)])
def test_spectra_that_must_be_resident_and_do_not_fit_are_refused(monkeypatch, share, free, reserved):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 400))
    worker = Worker(cache_root=Path(), device=torch.device("cuda", 0), device_share=share, reserved=reserved)
    with pytest.raises(UserError, match="access='resident'"):
        module._goes_to_device(100, worker, "resident")


@pytest.mark.gpu
@pytest.mark.parametrize("rules", [FIXED, FRESH], ids=["fixed", "fresh"])
def test_mapped_batches_are_the_resident_ones_on_a_gpu(open_batches, rules):
    cuda = torch.device("cuda", 0)
    resident, mapped = (open_batches(rules, access=access, device=cuda) for access in ("resident", "mapped"))
    assert (resident.access, mapped.access) == ("resident", "mapped")
    # Many at once: the two staging buffers are reused while earlier batches are still being copied.
    there, copied = ([b.batch(step) for step in range(40)] for b in (resident, mapped))
    for (flux, labels), (mapped_flux, mapped_labels) in zip(there, copied, strict=True):
        assert flux.device.type == mapped_flux.device.type == labels.device.type == "cuda"
        assert torch.equal(flux, mapped_flux)
        assert torch.equal(labels, mapped_labels)


@pytest.mark.gpu
def test_streamed_batches_on_a_gpu_are_those_on_the_cpu(open_batches):
    here, there = (open_batches(access="streamed", device=device) for device in (CPU, torch.device("cuda", 0)))
    for step in range(9):
        flux, labels = here.batch(step)
        gpu_flux, gpu_labels = there.batch(step)
        assert gpu_flux.device.type == gpu_labels.device.type == "cuda"
        assert torch.allclose(gpu_flux.cpu(), flux, rtol=0, atol=1e-6)
        assert torch.equal(gpu_labels.cpu(), labels)


def test_evaluation_noise_is_the_originals(shards, cache_root):
    """One draw for the split from seed 42 on the CPU, as `torch.manual_seed(42); torch.randn_like(flux)` gives."""
    rules = DataRules(input_norm="none")
    flux, error = map(torch.from_numpy, read_split(shards, "test")[:2])
    torch.manual_seed(42)
    expected = flux.clip(min=0) + torch.randn_like(flux) * error
    found = EvaluationSplit.load(shards, rules, "test", Worker(cache_root=cache_root, device=CPU))
    assert torch.allclose(found.flux, expected, rtol=0, atol=1e-6)
    share = EvaluationSplit.load(shards, rules, "test", Worker(cache_root=cache_root, device=CPU, rank=1, world=3))
    assert torch.equal(share.flux, found.flux[1::3])


@pytest.mark.parametrize("input_norm", ["none", "global", "mean_spectrum", "per_pixel"])
def test_standardised_inputs_have_the_promised_moments(open_batches, input_norm):
    flux, labels = open_batches(DataRules(noise="fixed", input_norm=input_norm), 300, 300).batch(0)
    assert labels.mean() == pytest.approx(0, abs=1e-5)
    assert labels.std(correction=0) == pytest.approx(1, abs=1e-5)
    if input_norm != "none":
        assert flux.mean() == pytest.approx(0, abs=0.02)
        assert flux.std() == pytest.approx(1, abs=0.02)
    if input_norm == "per_pixel":
        assert torch.allclose(flux.std(dim=0), torch.ones(1024), atol=0.25)


def test_minmax_labels_lie_in_the_unit_interval(shards):
    standardisation = Standardisation.of(shards, DataRules(label_norm="minmax"))
    assert standardisation.normalise_labels(np.array([[1.0], [5.0]]))[:, 0] == pytest.approx([0.0, 1.0], abs=0.05)


def test_the_evaluation_pin_follows_what_is_scored(shards):
    pin = evaluation_pin(shards, DataRules())
    assert pin == evaluation_pin(shards, DataRules(noise="fixed", input_norm="none"))
    others = [DataRules(eval_seed=1), DataRules(noise_level=0.5), DataRules(label="T_eff")]
    assert len({pin, *(evaluation_pin(shards, rules) for rules in others)}) == 4


@pytest.mark.parametrize(
    ("label", "word"), [("nonsense", "nonsense"), ("Fe_H", "Fe_H"), ("redshift", "nothing to learn")]
)
def test_an_unusable_label_is_named(shards, label, word):
    with pytest.raises(UserError, match=word):
        Standardisation.of(shards, DataRules(label=label))
