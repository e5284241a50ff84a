import contextlib
import dataclasses
import functools
import io
import math

import numpy as np
import pytest
import torch
import torch.multiprocessing

from scaling.data.batches.rules import DataRules
from scaling.model.ladder import Ladder, Whitening
from scaling.training.loop import _Trainer, train
from scaling.training.recipe import Budget, Recipe
from scaling.training.task import Context, Task

CPU = torch.device("cpu")
RECIPE = Recipe(
    budget=Budget(epochs=3), batch_size=64, precision="fp32", evaluations=3, schedule_unit="step", warmup=0.1
)


class KilledError(Exception):
    pass


class Host:
    """A host in memory: it keeps states as a file would, and can be killed after some reports."""

    def __init__(self, kill_after=None, rank=0, world=1):
        self.kill_after, self.reports, self.saved = kill_after, [], None
        self.rank, self.world, self.branches = rank, world, []

    def context(self, **changes):
        return Context(
            rank=self.rank,
            world=self.world,
            device=CPU,
            report=self.report,
            load=lambda: self.saved,
            branch=self.branches.append,
            **changes,
        )

    def report(self, metrics, state):
        self.reports.append(metrics)
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        self.saved = torch.load(file, weights_only=True)
        if self.kill_after is not None and len(self.reports) == self.kill_after:
            self.kill_after = None
            raise KilledError


@pytest.fixture
def task(shards, cache_root):
    return Task(
        shards=shards,
        cache_root=cache_root,
        rules=DataRules(noise="fixed"),
        num_spectra=200,
        model=Ladder(num_pixels=1024, patch_size=128, dropout=0.1, attention_dropout=0.1).rung(8),
        recipe=RECIPE,
        lr=5e-3,
        seed=7,
    )


def scalars(outcome):
    return outcome.val, outcome.test, outcome.steps, outcome.samples_seen, outcome.best_epoch


def same_weights(a, b):
    return all(torch.equal(a.weights[name], b.weights[name]) for name in a.weights)


def test_the_same_task_gives_the_same_bits(task):
    first, second = train(task, Host().context()), train(task, Host().context())
    assert scalars(first) == scalars(second)
    assert same_weights(first, second)
    assert first.samples_seen == 600
    assert first.steps == 12


@pytest.mark.parametrize("noise", ["fixed", "fresh"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_killed_and_resumed_is_uninterrupted_bit_for_bit(task, precision, noise):
    recipe = dataclasses.replace(RECIPE, precision=precision, evaluations=5)
    task = dataclasses.replace(task, recipe=recipe, rules=DataRules(noise=noise))
    whole = Host()
    expected = train(task, whole.context())
    for kill_after in (1, 3):
        host = Host(kill_after)
        with pytest.raises(KilledError):
            train(task, host.context())
        outcome = train(task, host.context())
        assert scalars(outcome) == scalars(expected)
        assert same_weights(outcome, expected)
        assert [m["val_mae_dex"] for m in host.reports] == [m["val_mae_dex"] for m in whole.reports]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_stays_close_to_fp32(task, precision):
    full = train(task, Host().context())
    mixed = train(dataclasses.replace(task, recipe=dataclasses.replace(RECIPE, precision=precision)), Host().context())
    assert mixed.val.mae == pytest.approx(full.val.mae, rel=0.05)
    assert mixed.val.mae != full.val.mae


def test_fp16_counts_the_steps_its_scaler_skips(task, monkeypatch):
    # A first scale this large overflows fp16; the scaler halves it at each skipped step until it fits.
    monkeypatch.setattr(torch.amp, "GradScaler", functools.partial(torch.amp.GradScaler, init_scale=2.0**26))
    recipe, host = dataclasses.replace(RECIPE, precision="fp16", evaluations=12), Host()
    outcome = train(dataclasses.replace(task, recipe=recipe), host.context())
    assert outcome.status == "done"
    assert 1 < outcome.skipped_steps < outcome.steps == 12
    losses = [report["train_loss"] for report in host.reports]  # one a step
    assert math.isnan(losses[0])
    assert sum(math.isnan(loss) for loss in losses) == outcome.skipped_steps
    assert not any(math.isinf(loss) for loss in losses)


def test_fp16_that_overflows_at_any_loss_scale_has_diverged(task, monkeypatch):
    # As if it had been halved by a long series of skipped steps.
    monkeypatch.setattr(torch.amp, "GradScaler", functools.partial(torch.amp.GradScaler, init_scale=2.0**-5))
    outcome = train(dataclasses.replace(task, recipe=dataclasses.replace(RECIPE, precision="fp16")), Host().context())
    assert outcome.status == "diverged"
    assert "any loss scale by step 4 of 12" in outcome.error


def test_tf32_is_set_for_its_own_trials_and_is_fp32_on_a_cpu(task):
    full = train(task, Host().context())
    tf32 = train(dataclasses.replace(task, recipe=dataclasses.replace(RECIPE, precision="tf32")), Host().context())
    assert torch.get_float32_matmul_precision() == "high"
    assert scalars(tf32) == scalars(full)
    train(task, Host().context())
    assert torch.get_float32_matmul_precision() == "highest"


def test_training_learns(task):
    recipe = dataclasses.replace(RECIPE, budget=Budget(samples=12_000), evaluations=4)
    host = Host()
    outcome = train(dataclasses.replace(task, num_spectra=300, recipe=recipe), host.context())
    guess = 0.866 * float(
        outcome.standardisation.label_std[0]
    )  # the error of always answering the mean of a uniform label, in dex
    assert outcome.test.mae < 0.75 * guess
    assert outcome.val.mae == min(report["val_mae_dex"] for report in host.reports)


def test_the_bins_of_the_test_errors_add_up_to_its_scores(task):
    outcome = train(task, Host().context())
    for bins in (outcome.test_detail.by_snr, outcome.test_detail.by_label):
        count = sum(line["count"] for line in bins)
        assert count == outcome.test.count == 96
        assert sum(line["count"] * line["mae_dex"] for line in bins) / count == pytest.approx(outcome.test.mae)
        assert sum(line["count"] * line["bias_dex"] for line in bins) / count == pytest.approx(outcome.test.bias)
    assert outcome.test.mae < outcome.test_detail.p90
    assert outcome.test_detail.guess_mae == pytest.approx(0.866 * float(outcome.standardisation.label_std[0]), rel=0.2)


def test_a_diverging_trial_says_so(task):
    recipe = dataclasses.replace(RECIPE, clip_norm=1e30, loss="mse")
    outcome = train(dataclasses.replace(task, lr=1e30, recipe=recipe), Host().context())
    assert outcome.status == "diverged"
    assert outcome.test_detail is None
    assert "not finite" in outcome.error
    assert "1e+30" in outcome.error


def _worker(rank, world, task, port, queue):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    host = Host(rank=rank, world=world)
    outcome = train(task, host.context())
    if rank == 0:
        curve = [(m["train_loss"], m["val_mae_dex"]) for m in host.reports]
        queue.put((curve, dataclasses.asdict(outcome.test), dataclasses.asdict(outcome.test_detail)))
    torch.distributed.destroy_process_group()


WSD = dataclasses.replace(
    RECIPE, budget=Budget(samples=2400), schedule="wsd", decay=0.25, warmup=0.1, branches=(0.25, 0.5), evaluations=8
)


@pytest.mark.parametrize("kill_after", [None, *range(1, 19, 3)])
def test_a_branch_is_a_run_of_its_budget_killed_or_not(task, kill_after):
    task = dataclasses.replace(task, recipe=WSD)
    host, outcome = Host(kill_after), None
    while outcome is None:
        with contextlib.suppress(KilledError):
            outcome = train(task, host.context())
    by_share = {found.share: found for found in (*host.branches, outcome)}
    assert list(by_share) == [0.25, 0.5, 1.0]
    for run, (share, found) in zip(WSD.runs(200), by_share.items(), strict=True):
        budget = Budget(samples=int(2400 * share))
        alone = dataclasses.replace(WSD, budget=budget, warmup=run.warmup / run.total, branches=())
        expected = train(dataclasses.replace(task, recipe=alone), Host().context())
        assert scalars(found) == scalars(expected)
        assert same_weights(found, expected)
        assert found.steps == run.total
    added = sum(found.added_seconds for found in by_share.values())
    assert outcome.train_seconds < added < sum(found.train_seconds for found in by_share.values())
    assert 0 < by_share[0.25].eval_seconds < outcome.eval_seconds < outcome.train_seconds


@pytest.mark.parametrize("rows", [1, 24, 64])
def test_micro_batches_give_the_losses_of_whole_ones(task, rows):
    task = dataclasses.replace(task, model=dataclasses.replace(task.model, dropout=0.0, attention_dropout=0.0))
    whole, parts = Host(), Host()
    train(task, whole.context())
    train(task, parts.context(micro_batch=rows))
    expected = [(m["train_loss"], m["val_mae_dex"]) for m in whole.reports]
    assert np.allclose([(m["train_loss"], m["val_mae_dex"]) for m in parts.reports], expected, rtol=2e-5)


@pytest.mark.parametrize("loss", ["l1", "mse", "huber"])
def test_the_first_loss_is_that_of_its_formula(task, loss):
    recipe = dataclasses.replace(RECIPE, budget=Budget(samples=1), batch_size=200, loss=loss, huber_delta=0.5)
    task = dataclasses.replace(
        task, recipe=recipe, model=dataclasses.replace(task.model, dropout=0.0, attention_dropout=0.0)
    )
    host = Host()
    train(task, host.context())
    trainer = _Trainer(task, Host().context())
    flux, labels = trainer.batches.batch(0)
    error = (trainer.stepper.model(flux) - labels).detach().double().abs()
    formula = {
        "l1": error,
        "mse": error**2,
        "huber": torch.where(error < 0.5, 0.5 * error**2, 0.5 * (error - 0.25)),
    }
    assert host.reports[0]["train_loss"] == pytest.approx(float(formula[loss].mean()), rel=1e-6)


THAWED = Whitening(kind="pca", components=256, frozen_epochs=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rules", "whitening"),
    [
        (DataRules(noise="fixed"), None),
        (DataRules(noise="fresh"), Whitening(kind="pca", components=256)),
        (DataRules(noise="fixed", other_labels=("T_eff",), eval_draws=2), THAWED),
    ],
    ids=["fixed noise", "fresh noise, frozen whitening", "several labels and draws, thawed whitening"],
)
def test_workers_give_the_losses_of_one_worker(task, rules, whitening, free_port):
    # 129 rows in batches of 64 end each epoch with a batch of one row: the second worker's share is empty.
    ladder = Ladder(num_pixels=1024, patch_size=128, dropout=0.0, attention_dropout=0.0, whitening=whitening)
    model = ladder.rung(8, len(rules.labels))
    task = dataclasses.replace(task, rules=rules, model=model, num_spectra=129, whitening=whitening)
    host = Host()
    alone = train(task, host.context())
    context = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    torch.multiprocessing.spawn(_worker, (2, task, free_port, queue), nprocs=2)
    curve, test, detail = queue.get()
    assert np.allclose(curve, [(m["train_loss"], m["val_mae_dex"]) for m in host.reports], rtol=2e-5)
    assert test["count"] == alone.test.count
    assert test["mae"] == pytest.approx(alone.test.mae, rel=2e-5)
    assert detail["guess_mae"] == alone.test_detail.guess_mae
    assert detail["p90"] == pytest.approx(alone.test_detail.p90, rel=1e-4)
    for name in ("by_snr", "by_label"):
        for found, expected in zip(detail[name], getattr(alone.test_detail, name), strict=True):
            assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_scores_do_not_depend_on_the_unit_of_the_loss(task):
    outcome = train(dataclasses.replace(task, rules=DataRules(noise="fixed", label_norm="minmax")), Host().context())
    assert 0.1 < outcome.test.mae < 3
    assert math.isfinite(outcome.test.r2)


def test_a_streamed_trial_that_was_killed_is_one_that_was_not(task):
    task = dataclasses.replace(task, access="streamed", rules=DataRules(noise="fresh"))
    whole, host = Host(), Host(kill_after=2)
    expected = train(task, whole.context())
    with pytest.raises(KilledError):
        train(task, host.context())
    outcome = train(task, host.context())
    assert scalars(outcome) == scalars(expected)
    assert same_weights(outcome, expected)
    assert not same_weights(outcome, train(dataclasses.replace(task, access="mapped"), Host().context()))
