import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.errors import UserError
from scaling.training.recipe import Budget, Recipe, samples_seen

ORIGINAL = Recipe(budget=Budget(epochs=200))


def test_the_original_runs_3907_steps_an_epoch_on_a_million_spectra():
    assert Budget(epochs=129).steps(1_000_000, 256) == 504_003


def test_the_original_schedule_is_cosine_per_epoch_to_a_thirtieth():
    steps_per_epoch = 10
    (run,) = ORIGINAL.runs(2560)
    assert run.total == 2000
    for step in (0, 9, 10, 999, 1999):
        epoch = step // steps_per_epoch
        expected = 1e-5 + 0.5 * (3e-4 - 1e-5) * (1 + math.cos(math.pi * epoch / 200))
        assert 3e-4 * run.factor(step) == pytest.approx(expected, rel=1e-12)


def test_warmup_rises_to_the_full_rate_and_then_decays_to_the_end():
    recipe = Recipe(budget=Budget(samples=100), batch_size=1, warmup=0.1, schedule_unit="step", final_lr_fraction=0.0)
    (run,) = recipe.runs(7)
    factors = [run.factor(step) for step in range(100)]
    assert factors[9] == 1.0
    assert factors[:10] == sorted(factors[:10])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[-1] < 0.001


@given(st.integers(1, 5000), st.integers(1, 400), st.integers(1, 20000))
def test_a_samples_budget_sees_those_samples(num_spectra, batch_size, samples):
    steps = Budget(samples=samples).steps(num_spectra, batch_size)
    assert samples <= samples_seen(steps, num_spectra, batch_size) < samples + batch_size


@given(st.integers(1, 5000), st.integers(1, 400), st.integers(1, 20))
def test_an_epochs_budget_sees_every_spectrum_that_often(num_spectra, batch_size, epochs):
    steps = Budget(epochs=epochs).steps(num_spectra, batch_size)
    assert samples_seen(steps, num_spectra, batch_size) == epochs * num_spectra


@given(st.integers(1, 300), st.integers(1, 1000))
def test_evaluations_end_with_the_run(evaluations, total):
    recipe = Recipe(budget=Budget(epochs=1), batch_size=1, evaluations=evaluations)
    (run,) = recipe.runs(total)
    steps = recipe.evaluation_steps(run)
    assert len(steps) == min(evaluations, total)
    assert max(steps) == total


WSD = Recipe(budget=Budget(samples=8000), batch_size=8, schedule="wsd", warmup=0.1, decay=0.25, branches=(0.2, 0.5))


def test_a_branch_has_the_rates_of_a_run_of_its_budget():
    *branches, whole = WSD.runs(100)
    assert [run.total for run in WSD.runs(100)] == [208, 520, 1040]
    for share, run in zip(WSD.branches, branches, strict=True):
        alone = dataclasses.replace(WSD, budget=Budget(samples=int(share * 8000)), warmup=21 / run.total, branches=())
        (single,) = alone.runs(100)
        assert single == run
        assert [run.factor(step) for step in range(run.fork)] == [whole.factor(step) for step in range(run.fork)]
        assert alone.evaluation_steps(single) == WSD.evaluation_steps(run)
    assert [whole.factor(step) for step in (0, 20, 21, whole.fork)] == [1 / 21, 1, 1, 1]
    decay = [whole.factor(step) for step in range(whole.fork, whole.total)]
    assert decay == sorted(decay, reverse=True)
    assert decay[-1] == pytest.approx(1 / 30, abs=0.01)
    assert not whole.selects(whole.fork)
    assert whole.selects(whole.fork + 1)


@pytest.mark.parametrize("budget", [{}, {"epochs": 1, "samples": 1}, {"epochs": 0}])
def test_a_budget_is_one_positive_number(budget):
    with pytest.raises(UserError, match="Budget"):
        Budget(**budget)


@pytest.mark.parametrize(
    "change",
    [{"branches": (0.5,)}, {"branches": (0.5, 0.25), "schedule": "wsd"}, {"decay": 0.0, "schedule": "wsd"}],
)
def test_a_wrong_recipe_names_its_field(change):
    with pytest.raises(UserError, match=next(iter(change))):
        Recipe(budget=Budget(epochs=1), **change)
