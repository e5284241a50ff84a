"""Every option of the original's, and ours, once from end to end: it learns, and a killed trial goes on bit for bit."""

import dataclasses

import numpy as np
import pytest
import torch

from scaling.data.batches import DataRules, EvaluationSplit, Standardisation, Worker, fit_whitening
from scaling.model.ladder import Ladder, Whitening
from scaling.training.evaluate import predict, score, score_detail
from scaling.training.loop import _Trainer, train
from scaling.training.metrics import Classified
from scaling.training.recipe import Budget, Recipe
from scaling.training.task import Task
from tests.training.test_loop import Host, KilledError

RULES = DataRules(noise="fixed")
LADDER = Ladder(num_pixels=1024, patch_size=128, dropout=0.0, attention_dropout=0.0)
RECIPE = Recipe(
    budget=Budget(epochs=12),
    batch_size=32,
    betas=(0.9, 0.98),
    precision="fp32",
    evaluations=4,
    schedule_unit="step",
    warmup=0.1,
    clip_norm=1.0,
)
PCA = Whitening(kind="pca", components=128)
OPTIONS = {
    "conv1d": {},
    "conv1d with overlap": {"ladder": {"stride": 64}},
    "sliding": {"ladder": {"tokenizer": "sliding", "patch_size": 100}},
    "sliding with overlap": {"ladder": {"tokenizer": "sliding", "patch_size": 100, "stride": 60}},
    "rope": {"ladder": {"positions": "rope"}},
    "no positions": {"ladder": {"positions": "none"}},
    "dropout": {"ladder": {"dropout": 0.1, "attention_dropout": 0.1}},
    "mse": {"recipe": {"loss": "mse"}},
    "huber": {"recipe": {"loss": "huber", "huber_delta": 0.5}},
    "minmax": {"rules": {"label_norm": "minmax"}, "recipe": {"budget": Budget(epochs=20)}},
    "several labels": {"rules": {"other_labels": ("T_eff", "M_H")}, "recipe": {"budget": Budget(epochs=20)}},
    "several labels, minmax": {
        "rules": {"other_labels": ("T_eff",), "label_norm": "minmax"},
        "recipe": {"budget": Budget(epochs=40)},
    },
    "boundary": {"rules": {"boundary": 3.0}},
    "several draws": {"rules": {"eval_draws": 3}},
    "boundary, several draws": {"rules": {"boundary": 3.0, "eval_draws": 2}},
    "fresh noise": {"rules": {"noise": "fresh"}},
    "inputs as they are, pca": {"rules": {"input_norm": "none"}, "ladder": {"whitening": PCA}},
    "inputs by one mean": {"rules": {"input_norm": "global"}},
    "inputs by pixel": {"rules": {"input_norm": "per_pixel"}},
    "pca, trained after an epoch": {"ladder": {"whitening": dataclasses.replace(PCA, frozen_epochs=1)}},
    "pca, frozen": {"ladder": {"whitening": PCA}},
    "pca, trained": {"ladder": {"whitening": dataclasses.replace(PCA, frozen_epochs=0)}, "rules": {"noise": "fresh"}},
    "zca, trained after 6 epochs, bf16": {  # killed after 5
        "ladder": {"whitening": Whitening(kind="zca", frozen_epochs=6)},
        "recipe": {"precision": "bf16", "budget": Budget(epochs=20)},
    },
    "cosine by epoch": {"recipe": {"schedule_unit": "epoch", "warmup": 0.0}},
    "constant": {"recipe": {"schedule": "constant"}},
    "wsd": {"recipe": {"schedule": "wsd", "decay": 0.4}},
    "bf16": {"recipe": {"precision": "bf16"}},
    "fp16": {"recipe": {"precision": "fp16"}},
}


@pytest.fixture
def make_task(shards, cache_root):
    def make(rules=None, ladder=None, recipe=None):
        rules = dataclasses.replace(RULES, **(rules or {}))
        ladder = dataclasses.replace(LADDER, **(ladder or {}))
        return Task(
            shards=shards,
            cache_root=cache_root,
            rules=rules,
            num_spectra=128,
            model=ladder.rung(8, len(rules.labels)),
            recipe=dataclasses.replace(RECIPE, **(recipe or {})),
            lr=2e-2,
            seed=7,
            whitening=ladder.whitening,
        )

    return make


def bits(outcome):
    weights = {name: tensor.numpy().tobytes() for name, tensor in outcome.weights.items()}
    return outcome.val, outcome.test, outcome.others, outcome.best_epoch, weights


@pytest.mark.parametrize("option", OPTIONS)
def test_each_option_learns_and_resumes_after_a_kill(make_task, option):
    task, whole = make_task(**OPTIONS[option]), Host()
    expected = train(task, whole.context())
    assert expected.status == "done"
    losses = [report["train_loss"] for report in whole.reports]
    assert losses[-1] < 0.9 * losses[0]
    assert np.isfinite([expected.val.error, expected.test.error]).all()
    # Learnt: less than always answering the mean, or the commoner side.
    assert expected.val.error < (0.5 if task.rules.boundary else 0.866 * float(expected.standardisation.label_std[0]))
    killed = Host(kill_after=1)
    with pytest.raises(KilledError):
        train(task, killed.context())
    assert bits(train(task, killed.context())) == bits(expected)


def maps(host):
    """The whitening map at every evaluation."""
    return [state["model"]["whitening.weight"] for state in host.states]


class Keeper(Host):
    """Keeps every state, not only the last."""

    def __init__(self):
        super().__init__()
        self.states = []

    def report(self, metrics, state):
        super().report(metrics, state)
        self.states.append(self.saved)


@pytest.mark.parametrize(("frozen_epochs", "still"), [(0, 0), (2, 2), (None, 6)])
def test_a_whitening_map_is_frozen_to_the_bit_until_it_is_trained(make_task, frozen_epochs, still):
    whitening = dataclasses.replace(PCA, frozen_epochs=frozen_epochs)
    task, host = (
        make_task(ladder={"whitening": whitening}, recipe={"budget": Budget(epochs=6), "evaluations": 6}),
        Keeper(),
    )
    outcome = train(task, host.context())
    worker = Worker(cache_root=task.cache_root, device=torch.device("cpu"))
    fitted = fit_whitening(task.shards, task.rules, "pca", 128, worker).weight
    assert [torch.equal(each, fitted) for each in maps(host)] == [epoch < still for epoch in range(6)]
    assert torch.equal(outcome.weights["whitening.weight"], fitted) is (frozen_epochs is None)


def test_a_frozen_map_has_no_part_in_the_steps(make_task):
    """Nor in the gradient's norm: thawed after the end or never, the other weights are the same to the bit."""
    recipe = {"clip_norm": 1e-3, "budget": Budget(epochs=2)}
    ladders = [{"whitening": dataclasses.replace(PCA, frozen_epochs=epochs)} for epochs in (2, None, 0)]
    outcomes = [train(make_task(ladder=ladder, recipe=recipe), Host().context()) for ladder in ladders]
    after, never, always = map(bits, outcomes)
    assert after == never
    assert after != always


def test_a_map_is_applied_in_full_precision_whatever_the_model_runs_in(make_task):
    task = make_task(ladder={"whitening": Whitening(kind="zca")})
    trainer = _Trainer(task, Host().context())
    flux, _ = trainer.batches.batch(0)
    trainer.batches.close()
    model = trainer.stepper.model
    with torch.autocast("cpu", dtype=torch.bfloat16):
        white, rounded = model._whiten(flux), model.whitening(flux)
    assert torch.equal(white, model.whitening(flux))
    assert not torch.equal(white, rounded.float())


def test_several_labels_have_scores_in_their_own_units(make_task):
    outcome = train(make_task(rules={"other_labels": ("T_eff", "M_H")}), Host().context())
    assert [(val.count, test.count) for val, test in outcome.others] == [(64, 96)] * 2
    # Always answering the mean of these labels misses by about 560 K and 0.76 dex.
    (_, temperature), (_, metallicity) = outcome.others
    assert 100 < temperature.mae < 620
    assert 0.1 < metallicity.mae < 0.85


@pytest.mark.parametrize("rules", [{"other_labels": ("T_eff", "M_H")}, {"boundary": 3.0}])
def test_the_first_loss_is_that_of_its_formula(make_task, rules):
    task = make_task(rules=rules, recipe={"batch_size": 128, "budget": Budget(epochs=1), "evaluations": 1})
    host, trainer = Host(), _Trainer(task, Host().context())
    train(task, host.context())
    flux, labels = trainer.batches.batch(0)
    answers, truth = trainer.stepper.model(flux).detach().double().numpy(), labels.double().numpy()
    trainer.batches.close()
    assert answers.shape == truth.shape == (128, len(task.rules.labels))
    each = (
        np.abs(answers - truth) if "other_labels" in rules else np.log1p(np.exp(np.where(truth > 0, -1, 1) * answers))
    )
    assert host.reports[0]["train_loss"] == pytest.approx(each.mean(), rel=1e-6)


@pytest.mark.parametrize("boundary", [None, 3.0])
def test_several_draws_are_the_mean_of_each(make_task, shards, cache_root, boundary):
    task = make_task(rules={"eval_draws": 3, "boundary": boundary, "label_norm": "standard"})
    model = torch.nn.Sequential(torch.nn.Linear(1024, 1))
    torch.nn.init.normal_(model[0].weight, std=0.05)
    split = EvaluationSplit.load(shards, task.rules, "test", Worker(cache_root=cache_root, device=torch.device("cpu")))
    predicted = predict(model, split, "fp32", batch_size=50)
    found, _ = score(predicted, split)
    answers = np.stack([model(flux).detach().numpy()[:, 0] for flux in split.draws()])
    truth = split.labels[:, 0].numpy()
    if boundary is not None:
        assert isinstance(found, Classified)
        assert found.error_rate == pytest.approx(((answers > 0) != (truth > 0.5)).mean())
        assert score_detail(predicted, split, shards) is None
        return
    error = np.abs(answers - truth) * Standardisation.of(shards, task.rules).label_scale[0]
    assert found.mae == pytest.approx(error.mean(), rel=1e-5)
    assert found.mae_sem == pytest.approx(error.mean(axis=0).std(ddof=1) / len(truth) ** 0.5, rel=1e-5)
    detail = score_detail(predicted, split, shards)
    assert detail.p90 == pytest.approx(np.quantile(error, 0.9), rel=1e-5)
    assert sum(line["mae_dex"] * line["count"] for line in detail.by_snr) / 96 == pytest.approx(found.mae)
