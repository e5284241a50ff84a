import dataclasses

import pytest

from scaling.study.plan import make_plan
from tests.study.example import example_study


def test_the_cost_of_branches_is_their_decays():
    study = example_study()  # 8 steps of 32 spectra
    wsd = dataclasses.replace(study.recipe, schedule="wsd", decay=0.5, branches=(0.25, 0.5))
    plain, branched = (
        make_plan(dataclasses.replace(study, recipe=recipe), tflops=1, mfu=0.5)
        for recipe in (dataclasses.replace(wsd, branches=()), wsd)
    )
    for alone, cell in zip(plain.cells, branched.cells, strict=True):
        assert (cell.steps, cell.samples_seen) == (alone.steps, alone.samples_seen) == (8, 256)
        assert cell.trial_flops == pytest.approx(alone.trial_flops * (8 + 1 + 2) / 8)
    assert branched.device_hours == pytest.approx(plain.device_hours * 11 / 8)
