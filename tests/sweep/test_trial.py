"""A trial's row and model file tell what its study declared: several labels, a classification, a whitening map."""

import dataclasses
import functools
import json
import math

import pytest
import torch

from analysis.points.trials import best_trials, error_sem, points_from_cells
from scaling.data.batches.evaluation import evaluation_pin
from scaling.errors import UserError
from scaling.model.checkpoint import load_model
from scaling.results import Row, to_table
from scaling.study.declaration import Budget, Cell, Data, DataRules, Ladder, Simulation, Whitening
from scaling.study.store import Store, StudyFolder
from scaling.sweep.code import PACKAGE
from scaling.sweep.plan import make_plan
from scaling.sweep.sweep import Sweep
from scaling.sweep.trial import describe_exception
from scaling.training.pruning import Hopeless
from tests.study.example import example_row, example_study

CELL = Cell(width=8, num_spectra=128, seed=1)
WHITENING = Whitening(kind="pca", components=128, frozen_epochs=1)
PLAIN = Ladder(num_pixels=1024, patch_size=128, dropout=0.0, attention_dropout=0.0)


def study_of(whitening=None, loss="l1", **rules):
    """`rules` are changes of the example's."""
    study = example_study()
    source = Simulation(train=512, val=64, test=64, pixels=1024, seed=3)
    return dataclasses.replace(
        study,
        data=Data(source=source, num_spectra=(128, 256), rules=dataclasses.replace(study.data.rules, **rules)),
        ladder=dataclasses.replace(PLAIN, whitening=whitening),
        recipe=dataclasses.replace(study.recipe, loss=loss),
    )


@pytest.fixture
def prepare(shards, cache_root, tmp_path):
    def make(study):
        sweep = Sweep.prepare(study, StudyFolder(Store(str(tmp_path)), study.name), shards, cache_root)
        return dataclasses.replace(sweep, access={128: "mapped", 256: "mapped"})

    return make


def run(sweep, number=0):
    """A trial in this process; its row and the metrics of its last evaluation."""
    trial, metrics = sweep.trial(CELL, number, 1e-2), []
    trial.run(metrics.append)
    return trial, trial.output.read_row(), metrics[-1]


def test_several_labels_after_a_whitening_map(prepare, tmp_path):
    study = study_of(WHITENING, other_labels=("T_eff", "M_H"), eval_draws=2)
    trial, row, _ = run(prepare(study))
    others = json.loads(row.other_labels)
    assert list(others) == ["T_eff", "M_H"]
    assert all(
        set(scores) == {"val_mae", "test_mae", "test_r2", "test_rmse", "test_bias"} for scores in others.values()
    )
    assert 100 < others["T_eff"]["test_mae"] < others["T_eff"]["test_rmse"] < 2000
    assert (row.label, row.eval_draws, row.num_test) == ("log_g", 2, 96)
    assert math.isnan(row.val_error_rate)
    model, _, about = load_model(next(tmp_path.rglob("model.safetensors")))
    assert about["labels"] == ["log_g", "T_eff", "M_H"]
    assert [len(about[name]) for name in ("label_offset", "label_scale", "label_mean", "label_std")] == [3] * 4
    assert about["boundary"] is None
    assert row.num_params == sum(parameter.numel() for parameter in model.parameters())
    assert model.head.out_features == 3
    planned = {plan.cell: plan.num_params for plan in make_plan(study).cells}
    assert planned[CELL] == row.num_params
    assert Row.from_json(row.to_json(), "row.json").to_json() == row.to_json()
    assert trial.task().whitening == WHITENING


def test_a_classification_from_its_rules_to_the_points_of_a_law(prepare):
    sweep = prepare(study_of(boundary=3.0, eval_draws=2))
    rows = [run(sweep, number)[1] for number in (0, 1)]
    row = rows[0]
    assert (row.label, row.status, row.measure.name) == ("log_g > 3", "done", "error rate")
    in_dex = [name for name in Row.__dataclass_fields__ if name.endswith(("_dex", "_z", "_r2"))]
    assert all(math.isnan(getattr(row, name)) for name in in_dex)
    assert 0 < row.test_error_rate < 0.6
    assert row.val_error == row.val_error_rate
    assert row.measure.named(row.test_error) == f"error rate {row.test_error_rate:.3f}"
    assert (row.test_by_snr, row.num_val) == ("[]", 64)
    many = [
        dataclasses.replace(
            rows[k % 2], trial=f"{n}-{d}-{k}", num_params=n, num_spectra=d, test_error_rate=20 / n + 9 / d
        )
        for k in range(2)
        for n in (300, 600, 900)
        for d in (128, 256, 512)
    ]
    cells = best_trials(to_table(many).to_pandas()).cells
    points = points_from_cells(cells)
    assert list(points.loss) == pytest.approx([20 / n + 9 / d for n in (300, 600, 900) for d in (128, 256, 512)])
    assert points.sem == pytest.approx((points.loss * (1 - points.loss) / 96) ** 0.5)
    assert list(error_sem(cells)) == list(points.sem)


def test_the_search_sees_what_an_evaluation_reports(prepare):
    for rules, name in (({}, "val_mae_dex"), ({"boundary": 3.0}, "val_error_rate")):
        sweep = prepare(dataclasses.replace(study_of(**rules), name=name.replace("_", "-")))
        _, row, metrics = run(sweep)
        assert name == f"val_{sweep.study.data.rules.score}" == row.measure.val
        assert metrics[name] >= row.val_error
        assert ("val_mae_dex" in metrics) != ("val_error_rate" in metrics)


def test_the_fingerprint_holds_every_option(prepare, shards):
    changes = [
        {},
        {"other_labels": ("T_eff",)},
        {"boundary": 3.0},
        {"boundary": 3.5},
        {"eval_draws": 2},
        {"whitening": WHITENING},
        {"whitening": dataclasses.replace(WHITENING, frozen_epochs=2)},
        {"whitening": dataclasses.replace(WHITENING, frozen_epochs=0)},
        {"whitening": dataclasses.replace(WHITENING, components=256)},
        {"whitening": dataclasses.replace(WHITENING, components=0)},
        {"whitening": Whitening(kind="zca", frozen_epochs=1)},
    ]
    assert len({prepare(study_of(**change)).fingerprint(CELL) for change in changes}) == len(changes)
    assert evaluation_pin(shards, DataRules(other_labels=("T_eff",))) == evaluation_pin(shards, DataRules())


@pytest.mark.parametrize("changes", [{"other_labels": ("nonsense",)}, {"other_labels": ("v_turb",)}, {"boundary": 9.0}])
def test_labels_are_looked_at_before_a_sweep(prepare, changes):
    with pytest.raises(UserError, match=r"nonsense|v_turb|one side"):
        prepare(study_of(**changes))


def test_a_classification_has_no_other_loss():
    with pytest.raises(UserError, match=r"Recipe.loss = 'mse'.*cross-entropy"):
        study_of(boundary=2.5, loss="mse")


def test_steps_that_fp16_skipped_and_a_divergence_stand_in_the_row(prepare, monkeypatch):
    # A first scale this large overflows fp16; the scaler halves it at each skipped step until it fits.
    monkeypatch.setattr(torch.amp, "GradScaler", functools.partial(torch.amp.GradScaler, init_scale=2.0**20))
    study = study_of()
    recipe = dataclasses.replace(study.recipe, precision="fp16", budget=Budget(samples=2048), clip_norm=1e30)
    sweep = prepare(dataclasses.replace(study, recipe=recipe))
    _, row, _ = run(sweep)
    assert row.status == "done"
    assert 0 < row.skipped_steps < row.steps
    assert 0 < row.mfu < 1.2
    assert row.peak_flops > 1e8
    trial = sweep.trial(CELL, 1, 1e30)
    trial.run(lambda metrics: None)
    row = trial.output.read_row()
    assert (row.status, row.budget_share) == ("diverged", 1.0)
    assert row.error == f"loss or validation error not finite by step {row.steps} of 64 at lr 1e+30"
    assert math.isnan(row.val_mae_dex)
    assert 0 < row.skipped_steps <= row.steps


def test_the_place_of_an_error_is_in_our_own_code_wherever_its_checkout_lies():
    library = compile("raise ValueError('bad')", f"{PACKAGE.parent}/scaling-venv/torch/nn.py", "exec")
    own = compile("call()", f"{PACKAGE}/training/step.py", "exec")
    with pytest.raises(ValueError, match="bad") as raised:
        exec(own, {"call": lambda: exec(library)})
    assert describe_exception(raised.value) == "ValueError at step.py:1: bad"
    with pytest.raises(ValueError, match="bad") as raised:
        exec(library)
    assert describe_exception(raised.value) == "ValueError: bad"


DAMAGED = ["step\n4\n", "step,val_mae_dex\n4,x\n", "step,val_mae_dex\n4\n", "step,val_mae_dex\n4," + "1" * 200_000]


@pytest.mark.parametrize("damaged", DAMAGED, ids=["no score", "no number", "torn", "endless"])
def test_a_rival_whose_curve_is_damaged_prunes_nothing(prepare, damaged):
    sweep = prepare(study_of())
    rival = example_row(cell=CELL.key, trial=CELL.trial(0))
    sweep.folder.trial(rival.trial).write_progress("step,val_mae_dex\n4,0.1\n", b"")
    trial = sweep.trial(CELL, 1, 1e-2, rival=rival)
    assert trial._hopeless().best == {4: 0.1}
    sweep.folder.trial(rival.trial).write_progress(damaged, b"")
    assert trial._hopeless() is None


def test_a_rival_without_an_error_is_no_division_by_zero():
    rule = Hopeless(rival="t00", first_step=4, best={4: 0.0})
    assert [rule.reason(4, error) for error in (0.0, 0.1)] == [
        "",
        "stopped at step 4: its best error so far is 0.1, that of t00 there 0",
    ]
