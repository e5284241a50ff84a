"""Evaluation spectra under several draws of their noise: the first is the one there always was."""

import hashlib

import numpy as np
import pytest
import torch

from scaling.data.batches import DataRules, EvaluationSplit, Worker, check_labels, evaluation_pin
from scaling.data.shards.manifest import LabelStatistics, Manifest
from scaling.errors import UserError
from scaling.training.evaluate import predict
from tests.data.shards.converting import read_split

RULES = DataRules(input_norm="none", eval_draws=6)


def load(shards, cache_root, rules=RULES, **where):
    worker = Worker(cache_root=cache_root, device=torch.device("cpu"), **where)
    return EvaluationSplit.load(shards, rules, "test", worker)


def test_draws_are_independent_noise_after_the_first(shards, cache_root):
    flux, error, _ = read_split(shards, "test")
    draws = list(load(shards, cache_root).draws())
    assert torch.equal(draws[0], load(shards, cache_root, DataRules(input_norm="none")).flux)
    noise = torch.stack([(draw - torch.from_numpy(flux).clamp(min=0)) / torch.from_numpy(error) for draw in draws])
    assert len(noise) == 6
    correlation = np.corrcoef(noise.flatten(1).numpy())
    assert np.abs(correlation - np.eye(6)).max() < 0.02
    assert noise.mean(dim=(1, 2)).abs().max() < 0.02
    assert (noise.std(dim=(1, 2)) - 1).abs().max() < 0.02


def test_a_split_too_large_for_the_device_is_scored_from_the_hosts_memory(shards, cache_root, monkeypatch):
    model = torch.nn.Linear(1024, 1)
    expected, pinned = predict(model, load(shards, cache_root), "fp32", batch_size=40), []
    monkeypatch.setattr(Worker, "room", lambda self: 9 * 96 * 1024 * 4)  # a tenth of it is too little
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    assert torch.equal(predict(model, load(shards, cache_root), "fp32", batch_size=40), expected)
    assert len(pinned) == RULES.eval_draws


@pytest.mark.parametrize("world", [2, 5])
def test_workers_share_the_rows_of_every_draw(shards, cache_root, monkeypatch, world):
    whole = load(shards, cache_root)
    monkeypatch.setattr(
        "scaling.data.batches.evaluation.READ_ROWS", len(whole.labels)
    )  # blocks are part of what a draw is
    parts = [load(shards, cache_root, rank=rank, world=world) for rank in range(world)]
    for draw, *shares in zip(whole.draws(), *(part.draws() for part in parts), strict=True):
        for rank, share in enumerate(shares):
            assert torch.equal(share, draw[rank::world])


def test_draws_are_the_same_each_time(shards, cache_root):
    split = load(shards, cache_root)
    assert all(torch.equal(a, b) for a, b in zip(split.draws(), split.draws(), strict=True))


def test_the_pin_names_the_draws_where_there_are_several(shards):
    manifest = Manifest.load(shards)
    parts = [manifest.digest("val", 64), manifest.digest("test", 96), "log_g", "42", "1.0"]
    assert evaluation_pin(shards, DataRules()) == hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    several = [DataRules(eval_draws=2), DataRules(eval_draws=3), DataRules(boundary=2.5), DataRules(boundary=3.5)]
    assert len({evaluation_pin(shards, rules) for rules in (DataRules(), *several)}) == 5


def test_all_labels_must_be_there_and_finite_in_every_split(shards, monkeypatch):
    manifest = Manifest.load(shards)
    check_labels(manifest, DataRules(other_labels=("T_eff", "M_H")))
    for other, word in (("nonsense", "no label 'nonsense'"), ("redshift", "nothing to learn"), ("v_turb", "v_turb")):
        with pytest.raises(UserError, match=word):
            check_labels(manifest, DataRules(other_labels=("T_eff", other)))
    with pytest.raises(UserError, match="on one side of it"):
        check_labels(manifest, DataRules(boundary=5.0))
    # Labels that are NaN in the evaluation splits only: the training statistics do not show it.
    manifest.labels["O_M"] = LabelStatistics(mean=0.0, std=1.0, min=-1.0, max=1.0, nan=0)
    monkeypatch.setattr(Manifest, "load", lambda path: manifest)
    with pytest.raises(UserError, match=r"val/part-00000.parquet.*'O_M' is not finite in 64 rows"):
        check_labels(manifest, DataRules(other_labels=("O_M",)))
    manifest.labels["O_M"] = LabelStatistics(mean=0.0, std=1.0, min=-1.0, max=1.0, nan=3)
    with pytest.raises(UserError, match="NaN in 3 training spectra"):
        check_labels(manifest, DataRules(other_labels=("O_M",)))


@pytest.mark.parametrize(
    ("rules", "word"),
    [
        ({"other_labels": ("T_eff", "T_eff")}, "each label once"),
        ({"other_labels": ("log_g",)}, "each label once"),
        ({"boundary": float("nan")}, "must be a finite number"),
        ({"boundary": 2.5, "other_labels": ("T_eff",)}, "one label"),
        ({"boundary": 2.5, "label_norm": "minmax"}, "no label_norm"),
        ({"eval_draws": 0}, "greater than or equal to 1"),
        ({"eval_draws": 2, "noise_level": 0.0}, "1 without noise"),
    ],
)
def test_rules_that_make_no_sense_are_refused(rules, word):
    with pytest.raises(UserError, match=word):
        DataRules(**rules)
