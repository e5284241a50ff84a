"""What only a CUDA device can show. Skipped without one."""

import contextlib
import dataclasses
import functools
import os

import numpy as np
import pytest
import torch
import torch.multiprocessing

from scaling.check.bench import default_study
from scaling.check.device import check_device
from scaling.check.findings import table
from scaling.check.numerics import waiting_refused
from scaling.data.batches.rules import DataRules
from scaling.model.ladder import Ladder
from scaling.study.declaration import Placement
from scaling.training.device import be_deterministic, measure, take_share
from scaling.training.loop import _Trainer, train
from scaling.training.recipe import Budget, Recipe
from scaling.training.task import Context, Task
from tests.training.test_loop import Host, KilledError
from tests.training.test_trainer import LocalFolder

pytestmark = pytest.mark.gpu

PLAIN = Ladder(num_pixels=1024, patch_size=128, dropout=0.0, attention_dropout=0.0)
RECIPE = Recipe(
    budget=Budget(epochs=4), batch_size=64, precision="fp32", evaluations=4, schedule_unit="step", warmup=0.1
)


class GpuHost(Host):
    """The host in memory, whose trials run on the first GPU."""

    def context(self, **changes) -> Context:
        return dataclasses.replace(super().context(**changes), device=torch.device("cuda", 0))

    def losses(self):
        return [(report["train_loss"], report["val_mae_dex"]) for report in self.reports]


@pytest.fixture
def task(shards, cache_root):
    return Task(
        shards=shards,
        cache_root=cache_root,
        rules=DataRules(noise="fixed"),
        num_spectra=200,
        model=PLAIN.rung(32),
        recipe=RECIPE,
        lr=3e-3,
        seed=7,
    )


def losses(task, host=None, **changes):
    host = host or GpuHost()
    outcome = train(task, host.context(**changes))
    assert outcome.status == "done"
    return np.array(host.losses()), outcome


@pytest.mark.parametrize("noise", ["fixed", "fresh"])
@pytest.mark.parametrize("access", ["resident", "mapped", "streamed"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_step_does_not_wait_for_the_gpu(task, precision, access, noise):
    recipe = dataclasses.replace(RECIPE, precision=precision)
    task = dataclasses.replace(task, recipe=recipe, access=access, rules=DataRules(noise=noise))
    trainer = _Trainer(task, GpuHost().context())
    (run,) = trainer.runs
    trainer.stepper.step(0, run)  # the first makes the optimiser's state
    with contextlib.closing(trainer.batches), waiting_refused():
        for step in range(1, 6):  # into the second epoch
            trainer.stepper.step(step, run)


def test_waiting_is_refused():
    ones = torch.ones(1, device="cuda")
    with waiting_refused(), pytest.raises(RuntimeError, match="synchronizing"):
        float(ones)
    float(ones)


@pytest.mark.parametrize("access", ["resident", "mapped"])
def test_the_gpu_gives_the_losses_of_the_cpu(task, access):
    on_cpu = Host()
    expected = train(task, on_cpu.context())
    found, outcome = losses(dataclasses.replace(task, access=access))
    assert outcome.access == access
    curve = [(report["train_loss"], report["val_mae_dex"]) for report in on_cpu.reports]
    assert np.allclose(found, curve, rtol=2e-3)
    assert outcome.test.mae == pytest.approx(expected.test.mae, rel=2e-3)
    assert all(not weights.is_cuda for weights in outcome.weights.values())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_stays_close_to_fp32(task, precision, monkeypatch):
    # fp16's usual first scale, 2¹⁶, overflows in the first steps: those that it skips set it back, which is not rounding.
    monkeypatch.setattr(torch.amp, "GradScaler", functools.partial(torch.amp.GradScaler, init_scale=2.0**10))
    full, _ = losses(task)
    mixed, outcome = losses(dataclasses.replace(task, recipe=dataclasses.replace(RECIPE, precision=precision)))
    assert np.allclose(mixed, full, rtol=0.05)
    assert not np.array_equal(mixed, full)
    assert outcome.skipped_steps == 0


def test_fp16_skips_a_few_first_steps_and_trains(task):
    _, outcome = losses(dataclasses.replace(task, recipe=dataclasses.replace(RECIPE, precision="fp16")))
    assert outcome.skipped_steps < outcome.steps / 2


def _compiled(rank, task, queue):
    for compiled in (True, "reduce-overhead"):
        # The second rung is another program of the same function.
        found = [losses(each, compiled=compiled)[0] for each in (task, dataclasses.replace(task, model=PLAIN.rung(64)))]
        queue.put([curve.tolist() for curve in found])


def test_a_compiled_model_gives_the_losses_of_the_plain_one(task):
    plain = [losses(each)[0] for each in (task, dataclasses.replace(task, model=PLAIN.rung(64)))]
    queue = torch.multiprocessing.get_context("spawn").SimpleQueue()
    # In a process of its own: what checks shapes in tests cannot be compiled.
    torch.multiprocessing.spawn(_compiled, (task, queue), nprocs=1)
    for _ in range(2):
        assert np.allclose(queue.get(), plain, rtol=2e-3)


def test_tf32_is_close_to_fp32_and_differs(task):
    full, _ = losses(task)
    rounded, _ = losses(dataclasses.replace(task, recipe=dataclasses.replace(RECIPE, precision="tf32")))
    assert np.allclose(rounded, full, rtol=0.02)
    assert not np.array_equal(rounded, full)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_killed_and_resumed_is_uninterrupted(task, precision):
    model = dataclasses.replace(task.model, dropout=0.1, attention_dropout=0.1)
    task = dataclasses.replace(task, model=model, recipe=dataclasses.replace(RECIPE, precision=precision))
    expected, _ = losses(task)
    host = GpuHost(kill_after=2)
    with pytest.raises(KilledError):
        train(task, host.context())
    found, _ = losses(task, host)
    assert np.allclose(found, expected, rtol=1e-3)  # some kernels add in another order each time


def test_the_check_finds_nothing_wrong():
    report = check_device(default_study(gpu=True), Placement(gpus=1), "here", 0.2)
    # What checks shapes in tests cannot be compiled.
    assert [finding for finding in report.findings if finding.verdict != "ok" and finding.check != "compiled"] == [], (
        table(report)
    )


def test_the_peak_is_that_of_a_gpu():
    wanted = ("fp32", "tf32", "bf16")
    peaks = [measure(torch.device("cuda", 0), precision).peak_flops for precision in wanted]
    assert 1e12 < peaks[0] < 1e16
    assert sorted(peaks) == peaks


def test_a_trial_takes_no_more_than_its_share():
    device = torch.device("cuda", 0)
    total = torch.cuda.get_device_properties(device).total_memory
    take_share(device, 0.1)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(total // 8, dtype=torch.uint8, device=device)
    finally:
        take_share(device, 1.0)


def test_deterministic_trials_have_the_same_bits(task):
    recipe = dataclasses.replace(RECIPE, precision="bf16")
    be_deterministic(True)
    try:
        first, second = (losses(dataclasses.replace(task, recipe=recipe))[0] for _ in range(2))
    finally:
        be_deterministic(False)
    assert np.array_equal(first, second)


def _train_on_half(folder: LocalFolder, task: Task) -> tuple[str, int, float]:
    from scaling.training.trainer import Job, run_in_process

    job = Job(name="half", identity="", task=task, folder=folder, finish=folder.finish, gpus=0.5)
    run_in_process(job, lambda metrics: None)
    return os.environ["CUDA_VISIBLE_DEVICES"], os.getpid(), folder.outcome()["test"]


@pytest.mark.ray
@pytest.mark.slow
def test_two_trials_share_one_gpu(task, tmp_path, ray_cluster):
    import ray

    folders = [LocalFolder(tmp_path / name) for name in "ab"]
    for folder in folders:
        folder.path.mkdir()
    start = ray.remote(num_cpus=1, num_gpus=0.5, max_retries=0)(_train_on_half)
    first, second = ray.get([start.remote(folder, task) for folder in folders])
    assert first[0] == second[0] != "", "both see the same device"
    assert first[1] != second[1], "each in a process of its own"
    assert first[2] == pytest.approx(second[2], rel=2e-3)
    _, outcome = losses(task)
    assert first[2] == pytest.approx(outcome.test.mae, rel=2e-3)
    assert folders[0].outcome()["device"] == torch.cuda.get_device_name(0)


@pytest.mark.ray
@pytest.mark.slow
def test_a_whole_gpu_runs_under_ray_train(task, tmp_path, ray_cluster):
    from scaling.training.trainer import Job, run_under_ray_train

    folder = LocalFolder(tmp_path / "whole")
    folder.path.mkdir()
    job = Job(name="whole-gpu", identity="", task=task, folder=folder, finish=folder.finish, gpus=1.0)
    run_under_ray_train(job, str(tmp_path / "storage"), max_failures=0)
    _, outcome = losses(task)
    assert folder.outcome()["test"] == pytest.approx(outcome.test.mae, rel=2e-3)
