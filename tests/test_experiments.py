import importlib

import pytest

from scaling.sweep.plan import make_plan


@pytest.mark.parametrize("name", ["smoke", "demo", "bosz_1m", "reference"])
def test_every_study_can_be_planned(name):
    study = importlib.import_module(f"experiments.{name}").STUDY
    plan = make_plan(study)
    assert (
        len(study.cells()) <= plan.sweep.trials.total() <= plan.num_trials <= len(study.cells()) * study.search.trials
    )
    assert plan.device_hours > 0


def test_the_reference_study_is_the_originals():
    from experiments.reference import STUDY

    *_, cell = STUDY.cells()
    plan = make_plan(STUDY).cells[-1]
    assert (plan.num_params, plan.steps, cell.num_spectra) == (4_809_729, 200 * 3907, 1_000_000)
    assert STUDY.search.centre(cell.width) == 3e-4
    (run,) = STUDY.recipe.runs(cell.num_spectra)
    assert 3e-4 * run.factor(run.total) == pytest.approx(1e-5)
    assert 3e-4 * run.factor(3906) == 3e-4
