"""The plan: trials and wall time from a simulated search, hours from what was measured, needs, and a grid within a budget."""

import dataclasses

import pytest
import torch

from scaling.errors import UserError
from scaling.model.ladder import Ladder, train_flops
from scaling.study.declaration import ExpectedLaw, LightGBM, Placement, Ridge, Search
from scaling.study.store import Store, StudyFolder
from scaling.sweep.costs import Costs, interpolated, keep_speeds, read_speeds, speeds_of_rows, total_steps
from scaling.sweep.describe import describe, describe_trimmed, to_json
from scaling.sweep.modelled import RAY_TRAIN_SECONDS, Cluster, simulate, smallest_cluster
from scaling.sweep.needs import device_needs, known_shards, node_needs, too_large
from scaling.sweep.plan import make_plan, planned_cluster, require, within
from scaling.sweep.timing import measure, rungs_to_time, time_rung
from scaling.sweep.trim import forecast_precision, trim
from scaling.training.memory import activation_bytes
from tests.study.example import example_row, example_study

STUDY = example_study(search=Search(trials=4), seeds=(1, 2))
CELL, *_, LAST = STUDY.cells()
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def speed():
    """Of the example's smallest rung, as a timing run finds it."""
    return time_rung(STUDY, 4, Placement(), CPU, seconds=0.0)


def test_a_simulated_sweep_is_the_same_every_time_and_within_its_bounds():
    two, many = (simulate(STUDY, Cluster(nodes=n, cpus=2, gpus=0), lambda cell: 10.0) for n in (1, 20))
    assert two.trials == many.trials
    assert two.work == 10.0 * two.trials.total()
    assert all(2 <= count <= 4 if cell.seed == 1 else count == 1 for cell, count in two.trials.items())
    assert two.bound <= two.wall <= 1.5 * two.bound
    assert two.utilisation > 0.9 > many.utilisation
    assert many.wall >= many.chain >= 30


def test_a_cell_that_fits_no_node_is_refused_with_what_it_needs():
    study = example_study(placements=(Placement(), Placement(from_width=8, gpus=1, cpus=3, workers=2)))
    assert smallest_cluster(study) == Cluster(nodes=2, cpus=3, gpus=1)
    assert planned_cluster(study, None, None, None) == smallest_cluster(study)
    with pytest.raises(
        UserError, match=r"w0008-d00000128-s1 needs 2 × 1 GPU and 3 CPU; the cluster has 1 x \(8 CPU, 1 GPU"
    ):
        simulate(study, planned_cluster(study, None, 8, 1), lambda cell: 1.0)


def test_the_cost_of_branches_is_their_decays():
    wsd = dataclasses.replace(STUDY.recipe, schedule="wsd", decay=0.5, branches=(0.25, 0.5))
    plain, branched = (
        make_plan(dataclasses.replace(STUDY, recipe=recipe)).cells
        for recipe in (dataclasses.replace(wsd, branches=()), wsd)
    )
    for alone, cell in zip(plain, branched, strict=True):
        assert (cell.steps, cell.samples_seen) == (alone.steps, alone.samples_seen) == (8, 256)
        assert cell.trial_flops == pytest.approx(alone.trial_flops * 11 / 8)
        assert cell.cost.seconds - cell.cost.start == pytest.approx((alone.cost.seconds - alone.cost.start) * 11 / 8)


def test_seconds_are_interpolated_with_a_floor_and_a_largest_rate():
    points = [(1.0, 2.0), (1.0, 4.0), (100.0, 30.0)]
    assert [interpolated(points, x) for x in (0.01, 1.0, 10.0, 200.0)] == pytest.approx([3.0, 3.0, 90**0.5, 60.0])


def test_rows_give_back_what_their_trials_took():
    flops = float(train_flops(STUDY.model(4), 256))
    times = {"steps": 8, "samples_per_second": 64.0, "eval_seconds": 1.0, "wall_seconds": 8.0}  # 4 s of training
    rows = [example_row(train_flops=flops, num_val=96, num_test=48, **times)]
    known = speeds_of_rows(STUDY, [*rows, example_row(status="failed", steps=0), example_row(cell="other")])
    cost = Costs(STUDY, known, [], scored=(96, 48)).trial(CELL)
    assert cost.seconds == pytest.approx(8.0)
    assert cost.step * 8 == pytest.approx(4.0)
    assert cost.source == "rows on cpu"


def test_what_was_timed_is_remembered_and_used_where_rows_are_not(tmp_path, speed):
    store = Store(str(tmp_path / "store"))
    assert read_speeds(store) == []
    fast = speed.model_copy(update={"step_seconds": 0.01, "start_seconds": 2.0, "eval_seconds": 1e-3})
    keep_speeds(store, [speed])
    assert keep_speeds(store, [fast]) == read_speeds(store) == [fast]
    cost = Costs(STUDY, [], read_speeds(store), scored=(10, 20)).trial(CELL)
    assert (cost.step, cost.start, cost.evaluation) == pytest.approx((0.01, 2.0, 0.05))
    compiled = fast.model_copy(update={"step_seconds": 0.002, "compiled": True})
    steps = {
        how: Costs(dataclasses.replace(STUDY, placements=(Placement(compiled=how),)), [], [fast, compiled])
        .trial(CELL)
        .step
        for how in (False, True)
    }
    assert steps == pytest.approx({False: 0.01, True: 0.002})
    two_workers = dataclasses.replace(STUDY, placements=(Placement(workers=2),))
    assert Costs(two_workers, [], [fast]).trial(CELL).start == 2.0 + RAY_TRAIN_SECONDS
    assert Costs(STUDY, [], [fast.model_copy(update={"gpu": True})]).trial(CELL).source.startswith("assumed")
    (tmp_path / "store" / "speeds.json").write_text('{"format": 1, "speeds": [{"device": 3}]}')
    with pytest.raises(UserError, match=r"speeds.json: speeds.0.device: .*--measure"):
        read_speeds(store)


def test_a_smaller_share_of_a_device_slows_down_what_exceeds_the_smallest_step(speed):
    large = speed.model_copy(update={"width": 8, "flops": speed.flops * 100, "step_seconds": 0.09})
    small = speed.model_copy(update={"step_seconds": 0.01})
    study = dataclasses.replace(STUDY, placements=(Placement(cpus=0.5),), widths=(4, 8))
    assert Costs(study, [], [small, large]).trial(CELL).step == pytest.approx(0.01)
    assert 0.01 < Costs(STUDY, [], [small, large]).trial(LAST).step < Costs(study, [], [small, large]).trial(LAST).step


def test_a_timing_run_is_of_the_real_step(speed):
    assert (speed.device, speed.memory, speed.rows, speed.tokens) == ("cpu", 0, 32, 9)
    assert 0 < speed.step_seconds < 5 > speed.eval_seconds > 0
    fresh = dataclasses.replace(STUDY.data.rules, noise="fresh", other_labels=("T_eff",))
    other = dataclasses.replace(STUDY, data=dataclasses.replace(STUDY.data, rules=fresh))
    assert time_rung(other, 8, Placement(workers=2, micro_batch=8), CPU, seconds=0.0).rows == 16
    study = example_study(widths=(4, 8, 16, 32), placements=(Placement(), Placement(from_width=32, workers=2)))
    assert list(rungs_to_time(study).values()) == [[4, 16], [32]]


@pytest.mark.ray
def test_rungs_are_timed_on_the_nodes_of_a_cluster(ray_cluster):
    said = []
    found = measure(example_study(widths=(4,)), said.append, seconds=0.0)
    assert [(speed.width, speed.share, speed.gpu) for speed in found] == [(4, 1.0, False)]
    assert "workers of 1 CPU side by side" in said[0]
    with pytest.raises(UserError, match="--measure: no node"):
        measure(example_study(placements=(Placement(gpus=1),)), said.append, seconds=0.0)


@pytest.mark.parametrize(
    ("precision", "changes"),
    [("fp32", {}), ("bf16", {}), ("fp32", {"dropout": 0.1, "attention_dropout": 0.1}), ("bf16", {"positions": "rope"})],
)
def test_counted_activations_are_those_of_a_real_forward_pass(precision, changes):
    ladder = Ladder(**({"num_pixels": 256, "patch_size": 16, "dropout": 0.0, "attention_dropout": 0.0} | changes))
    config = ladder.rung(32)
    counted = activation_bytes(config, precision, False)
    assert counted == activation_bytes(config, precision, False, fake=False)
    assert counted[0] > config.depth * config.num_tokens * config.width * (12 if precision == "fp32" else 8)
    assert activation_bytes(config, precision, True)[0] <= counted[0]


def test_what_does_not_fit_a_gpu_is_said_with_the_knob():
    place, manifest = Placement(gpus=1), known_shards(STUDY, None)
    study = example_study(placements=(place,))
    assert device_needs(study, 8, place, 256, manifest, 10**9).resident == 0, "CUDA and the allocator take as much"
    needs = device_needs(study, 8, place, 256, manifest, 2 * 10**9)
    assert needs.rows == 32
    assert needs.resident == 256 * 1024 * 4
    assert needs.held == 128 * 1024 * 4
    assert not too_large(needs, needs.total, place, "w8")
    small = dataclasses.replace(needs, activation=10**6, resident=0, evaluation=0)
    assert "micro_batch=16, or Placement.workers=2" in too_large(
        small, needs.model + needs.held + 20 * 10**6, place, "w8"
    )
    assert "a GPU of more memory" in too_large(needs, 1000, place, "w8")
    assert "access='mapped'" in too_large(needs, needs.total - 1, place, "w8")


def test_each_rung_that_no_gpu_holds_is_named_once():
    study = example_study(placements=(Placement(gpus=0.5),))
    problems = require(make_plan(study), gpu_memory=1.0001e9).problems
    assert [problem.split(":")[0] for problem in problems] == ["w4", "w8"]
    assert not require(make_plan(study), gpu_memory=3e9).problems


def test_a_node_needs_its_maps_or_streams():
    cluster, place = Cluster(nodes=1, cpus=2, gpus=0), Placement()
    manifest = known_shards(STUDY, None)
    needs = {place: device_needs(STUDY, 8, place, 256, manifest, 0)}
    node = node_needs(STUDY, cluster, manifest, needs, None)
    assert node.maps == 4 * 1024 * (2 * 128 + 512)  # as many training spectra as the simulation has: one shard
    assert (node.trials, node.streamed, node.problem) == (2, 0, "")
    streamed = node_needs(STUDY, cluster, manifest, needs, 4 * 1024 * 300)
    assert set(streamed.access.values()) == {"streamed"}
    assert streamed.streamed > 0
    mapped = dataclasses.replace(STUDY, data=dataclasses.replace(STUDY.data, access="mapped"))
    assert "--cache-limit" in node_needs(mapped, cluster, manifest, needs, 10**6).problem


def test_a_budget_drops_the_dearest_widths_first_and_keeps_the_reach_of_d():
    study = example_study(widths=(4, 8, 16, 32), data=dataclasses.replace(STUDY.data, num_spectra=(32, 64, 128, 256)))

    def hours(smaller):
        return {cell: float(cell.width) for cell in smaller.cells()}

    assert trim(study, 240, hours) == study
    smaller = trim(study, 100, hours)
    assert (smaller.widths, smaller.data.num_spectra) == ((4, 8, 16), (32, 64, 256))
    for budget in (1, 0, float("nan")):
        with pytest.raises(UserError, match="--budget"):
            trim(study, budget, hours)


def test_baselines_are_named_and_not_in_the_figures():
    study = dataclasses.replace(STUDY, baselines=(Ridge(), LightGBM(cpus=8)))
    with_them, without = map(make_plan, (study, STUDY))
    assert "baselines: ridge (1 CPU), lightgbm (8 CPU) at each number of spectra" in describe(with_them)
    assert "baselines" not in describe(without)
    assert with_them.device_hours == without.device_hours


def test_the_whole_plan_of_a_budget_in_words_and_json(monkeypatch):
    monkeypatch.setattr("scaling.sweep.trim.DRAWS", 1)
    data = dataclasses.replace(STUDY.data, num_spectra=(16, 32, 64, 128, 256))
    law = ExpectedLaw(a=3.0, alpha=0.5, b=2.0, beta=0.5)
    study = example_study(widths=(4, 8, 16, 32), data=data, seeds=(1, 2), expected=law)
    costs = Costs(study, [], [], tflops=1e-4)
    plan = make_plan(study, costs)
    found, needs = within(plan, 0.9 * plan.device_hours, costs), require(plan, cache_limit=1000)
    assert found.trimmed.curve > found.full.curve > 0
    text = describe(plan, needs) + describe_trimmed(plan, found)
    for words in ("drop w32", "longest chain", "at most 60", "CANNOT FIT", "3/N^0.5", "an assumption"):
        assert words in text
    values = to_json(plan, needs, found)
    assert values["budget"]["widths"] == (4, 8, 16)
    assert values["trials"] == 60 >= values["expected_trials"]
    assert forecast_precision(STUDY, (1000, 256)).describe() == "no law can be fitted"


def test_steps_hold_branches_and_a_store_without_rows_is_no_mistake(tmp_path):
    assert total_steps(STUDY, CELL) == 8
    assert speeds_of_rows(STUDY, StudyFolder(Store(str(tmp_path)), STUDY.name).rows()) == []
    for tflops, mfu in ((0.0, 0.2), (1.0, 2.0), (float("nan"), 0.1)):
        with pytest.raises(UserError, match="--tflops"):
            Costs(STUDY, [], [], tflops=tflops, mfu=mfu)
