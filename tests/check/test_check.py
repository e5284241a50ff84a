"""The check of a device: a sound one is ok in all, and each fault is found by the check that is there for it."""

import dataclasses
import functools
import json
import re
import time

import pytest
import torch

from scaling.check import cluster, delivery, numerics
from scaling.check import device as module
from scaling.check.bench import Bench, default_study
from scaling.check.cluster import check_cluster
from scaling.check.findings import table, to_json, within
from scaling.errors import UserError
from scaling.model.specvit import SpecViT
from scaling.study.declaration import Placement
from scaling.sweep.costs import Costs, read_calibration
from scaling.sweep.timing import MadeUp, time_rung
from scaling.training.step import Stepper
from tests.inference.models import RULES, study_of
from tests.study.example import example_study

CPU = torch.device("cpu")


@pytest.fixture
def bench():
    return Bench(default_study(gpu=False), CPU)


@pytest.mark.ray
@pytest.mark.slow
def test_a_sound_machine_is_ok_and_its_speeds_are_what_a_plan_takes(ray_cluster, tmp_path):
    study, said = example_study(), []
    (report,) = check_cluster(study, said.append, seconds=0.02)
    assert len(said) == 1
    assert {finding.check: finding.verdict for finding in report.findings} == dict.fromkeys(
        [
            "versions",
            "matrix product",
            "gradients",
            "loss curves",
            "resumed",
            "repeated",
            "compiled",
            "batches",
            "side by side",
            "two workers",
        ],
        "ok",
    )
    assert {(speed.width, speed.precision) for speed in report.speeds} == {
        (width, precision) for width in study.widths for precision in ("fp32", "bf16", "fp16")
    }
    assert "w8       bf16" in table(report)
    file = tmp_path / "check.json"
    file.write_text(json.dumps(to_json([report])))
    assert read_calibration(file) == report.speeds
    cell = study.cells()[-1]
    (expected,) = (s.step_seconds for s in report.speeds if (s.width, s.precision) == (cell.width, "fp32"))
    cost = Costs(study, [], read_calibration(file)).trial(cell)
    assert (cost.step, cost.source) == (pytest.approx(expected), "timing run on cpu")


@pytest.mark.parametrize("content", [None, "", "[]", '{"format": 1}', '{"format": 1, "speeds": [{"device": 3}]}'])
def test_what_is_no_calibration_is_refused(tmp_path, content):
    file = tmp_path / "check.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=r"check\.json.*scaling check --json"):
        read_calibration(file)


def test_a_wrong_product_has_failed(bench, monkeypatch):
    assert numerics.products(bench).verdict == "ok"
    flips = iter([1.0, 0.0])  # the device's product, then the CPU's
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: torch.mm(a, b).add_(next(flips) * torch.eye(512)))
    finding = numerics.products(bench)
    assert (finding.verdict, finding.found) == ("failed", "512 of 262144 elements wrong")


def test_a_gradient_that_is_not_the_cpus_differs(bench, monkeypatch):
    assert numerics.gradients(bench).verdict == "ok"
    right = numerics._gradient
    monkeypatch.setattr(
        numerics,
        "_gradient",
        lambda bench, width, precision, device: right(bench, width, precision, device) * (1 + (precision == "bf16")),
    )
    finding = numerics.gradients(bench)
    assert (finding.verdict, "bf16 1, " in finding.found, "at most bf16 0.1" in finding.found) == (
        "differs",
        True,
        True,
    )


@pytest.mark.parametrize(("scale", "verdict"), [(1.0, "ok"), (float("nan"), "differs"), (1.5, "differs")])
def test_a_loss_curve_that_leaves_that_of_fp32_differs(bench, monkeypatch, scale, verdict):
    right = Stepper.mean_loss
    monkeypatch.setattr(
        Stepper, "mean_loss", lambda self: right(self) * (scale if self.recipe.precision == "bf16" else 1.0)
    )
    bench.precisions = ["fp32", "bf16"]
    assert numerics.curves(bench).verdict == verdict


def test_a_device_that_learns_nothing_differs(bench, monkeypatch):
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: None)
    finding = numerics.curves(bench)
    assert (finding.verdict, "learns nothing" in finding.found) == ("differs", True)


def test_a_state_that_does_not_come_back_differs(bench, monkeypatch):
    assert numerics.resumes(bench).verdict == "ok"
    monkeypatch.setattr(Stepper, "restore", lambda self, state: self.model.load_state_dict(state["model"]))
    assert numerics.resumes(bench).verdict == "differs", "without the optimiser's moments"


def test_a_gpu_without_kernels_differs(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (12, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80", "sm_90a"])
    bench = Bench(default_study(gpu=True), torch.device("cuda", 0))
    finding = numerics.versions(bench)
    assert (finding.verdict, "kernels for sm_80, sm_90a only" in finding.found) == ("differs", True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert numerics.versions(bench).verdict == "ok"


def test_a_compiled_program_that_answers_otherwise_differs(bench, monkeypatch):
    monkeypatch.setattr("scaling.training.step._compile", lambda model, compiled: model)
    assert numerics.compiled(bench).verdict == "ok"
    monkeypatch.setattr("scaling.training.step._compile", lambda model, compiled: lambda flux: model(flux) + 0.1)
    assert numerics.compiled(bench).verdict == "differs"


def test_two_workers_that_train_otherwise_than_one_differ(monkeypatch):
    together = functools.partial(cluster._together, {}, example_study(), Placement())
    for shared, verdict in (([1.0, 0.5], "ok"), ([1.0, 0.51], "differs")):
        monkeypatch.setattr(cluster, "_on", lambda *_, shared=shared: [([1.0, 0.5], shared), None])
        assert together().verdict == verdict
    monkeypatch.setattr(cluster, "_on", lambda *_: 1 / 0)
    assert together().verdict == "failed"


def test_chance_in_a_deterministic_step_differs(bench, monkeypatch):
    assert numerics.repeats(bench).verdict == "ok"
    assert not torch.are_deterministic_algorithms_enabled()
    right, chance = Stepper.mean_loss, iter(range(100))
    monkeypatch.setattr(Stepper, "mean_loss", lambda self: right(self) + 1e-6 * next(chance))
    assert numerics.repeats(bench).verdict == "differs"


def test_a_check_that_cannot_be_made_has_failed_and_the_others_are_made(monkeypatch):
    monkeypatch.setattr(module, "CHECKS", (numerics.resumes, numerics.products))
    monkeypatch.setattr(SpecViT, "forward", lambda self, flux: 1 / 0)
    monkeypatch.setattr(module, "speeds", lambda *_: [])
    report = module.check_device(example_study(), Placement(), "here", 0.0)
    assert [finding.verdict for finding in report.findings] == ["failed", "ok", "failed"]
    assert "division by zero" in table(report)


def test_batches_of_the_studys_own_shards_are_timed_and_nothing_is_left(shards, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    bench = Bench(study_of(shards, RULES["one label"]), CPU)
    slow = time_rung(bench.study, 8, Placement(), CPU, 0.0).model_copy(update={"rows": 10, "step_seconds": 2.0})
    fast = slow.model_copy(update={"width": 16, "rows": 70})
    found = delivery.delivery(bench, [slow, fast], 0.0).found
    assert re.fullmatch(
        r"samples/s: resident [\d,]+, mapped [\d,]+, streamed [\d,]+; training takes up to 35, w16 in fp32", found
    )
    assert not list(tmp_path.iterdir())


def test_batches_are_of_made_up_spectra_where_the_studys_shards_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(delivery, "SPECTRA", 64)
    rules = dataclasses.replace(RULES["one label"], label="a_M")
    study = study_of(tmp_path / "absent", rules)
    bench = Bench(study, CPU)
    speed = time_rung(study, 8, Placement(), CPU, 0.0)
    assert "samples/s: resident" in delivery.delivery(bench, [speed], 0.0).found
    assert not list(tmp_path.iterdir())


def test_the_rate_of_batches_is_that_of_their_spectra():
    class Slow(MadeUp):
        def batch(self, step):
            time.sleep(0.01)
            return super().batch(step)

    batches = Slow(example_study(), 50, CPU)
    assert 0.0 < delivery._rate(batches, 0.2) <= 50 / 0.01


def test_a_gpu_that_torch_cannot_use_is_one_finding():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    report = module.check_device(default_study(gpu=True), Placement(gpus=1), "here", 0.0)
    (finding,) = report.findings
    assert (finding.check, finding.verdict) == ("device", "failed")
    assert "cannot use the GPU" in finding.found
    assert report.speeds == []


def test_values_at_their_bound_are_ok_and_nan_is_not():
    assert within("x", {"a": 1.0}, {"a": 1.0}, "what", "do this").verdict == "ok"
    finding = within("x", {"a": 1.0, "b": float("nan")}, {"a": 1.0, "b": 2.0}, "what", "do this")
    assert (finding.verdict, finding.found, finding.remedy) == ("differs", "what: a 1, b nan (at most b 2)", "do this")
