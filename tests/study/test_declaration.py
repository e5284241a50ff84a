"""A declaration is parsed strictly: whatever a module gives, it is a study that can be planned, or one clear line."""

import dataclasses
import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.demo import STUDY as DEMO
from scaling.commands.common import load_study
from scaling.errors import UserError
from scaling.study.declaration import (
    Budget,
    Cell,
    DataRules,
    Ladder,
    Placement,
    Recipe,
    Search,
    Simulation,
    Sources,
    Study,
    Whitening,
    stable,
)
from scaling.sweep.costs import Costs
from tests.data.shards.converting import one_line

DECLARED = [
    DEMO,
    DEMO.data,
    DEMO.ladder,
    DEMO.recipe,
    DEMO.cells()[0],
    Budget(epochs=2),
    DataRules(),
    Placement(gpus=2, workers=4, min_workers=2, micro_batch=8),
    Search(trials=3),
    Simulation(),
    Sources(shards="s3://bucket/x", train=(Path("a.h5"),), val=Path("b.h5"), test=Path("c.h5")),
    Whitening(kind="pca", components=4),
]
PLACES = [(value, field.name) for value in DECLARED for field in dataclasses.fields(value)]
NUMBERS = st.sampled_from([-1, 0, 1, 3, 2**31, 2**63, 10**30, 10**400, -1.0, 0.0, 0.5, 1.5, 1e308, math.inf, math.nan])
THINGS = st.sampled_from(
    [None, True, "", "l1", "auto", "x" * 300, "\ud800", b"x", {}, {1}, object, Path("x"), np.int64(3)]
)
SIMPLE = NUMBERS | THINGS | st.sampled_from([np.float64(0.5), np.float64(math.nan), *DECLARED])
VALUES = SIMPLE | st.lists(SIMPLE, max_size=2) | st.lists(SIMPLE, max_size=3).map(tuple)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(PLACES), VALUES)
def test_any_value_of_any_field_is_a_declaration_or_one_line(place, value):
    declared, name = place
    try:
        made = dataclasses.replace(declared, **{name: value})
    except UserError as error:
        said = one_line(error)
        assert type(declared).__name__ in said or name in said
        return
    json.dumps(stable(made), allow_nan=False)
    assert pickle.loads(pickle.dumps(made)) == made
    if isinstance(made, Study):
        costs = Costs(made, [], [])
        assert all(costs.trial(cell).seconds > 0 for cell in made.cells())


@pytest.mark.parametrize(
    ("declared", "name", "value", "words"),
    [
        (DEMO.recipe, "batch_size", 1.5, "Recipe.batch_size = 1.5: must be a valid integer"),
        (DEMO.recipe, "betas", (0.9, math.nan), "Recipe.betas[1] = nan: must be a finite number"),
        (DEMO.recipe, "loss", "l3", "Recipe.loss = 'l3': must be 'l1', 'mse' or 'huber'"),
        (DEMO.recipe, "batchsize", 8, "Recipe.batchsize = 8: Unexpected keyword argument"),
        (DEMO, "name", "x" * 101, "at most 100 characters"),
        (DEMO, "seeds", [1, 2], "Study.seeds = [1, 2]: must be a valid tuple"),
        (DEMO, "recipe", None, "Study.recipe = None: must be an instance of Recipe"),
        (DEMO.data, "source", None, "Data.source = None: must be an instance of Simulation or an instance of Sources"),
        (DEMO.data, "num_spectra", (128.5, 256), "Data.num_spectra[0] = 128.5: must be a valid integer"),
        (Placement(), "cpus", True, "Placement.cpus = True: must be a valid number"),
        (Placement(), "compiled", "reduce-overhead", "compiled='reduce-overhead' is for one worker with a GPU"),
        (Placement(gpus=1, micro_batch=8), "compiled", "reduce-overhead", "and no micro_batch; use compiled=True"),
    ],
)
def test_the_line_names_class_field_value_and_what_must_be_there(declared, name, value, words):
    with pytest.raises(UserError) as raised:
        dataclasses.replace(declared, **{name: value})
    assert words in str(raised.value)
    with pytest.raises(UserError, match=r"Recipe\.budget: must be given"):
        Recipe()


def test_a_whole_number_stands_for_a_float_and_stays_one():
    place, rules = Placement(gpus=1, cpus=6), dataclasses.replace(DEMO.recipe, betas=(0, 0.98))
    assert json.dumps([place.gpus, place.cpus, rules.betas]) == "[1, 6, [0, 0.98]]"


OWN = """
from __future__ import annotations
import dataclasses
from scaling.study.declaration import *
from experiments.demo import STUDY as DEMO

@dataclasses.dataclass
class Factor:
    value: int = 4

class Wide(Ladder):
    def rung(self, width, num_outputs=1):
        return super().rung(Factor().value * width, num_outputs)

STUDY = dataclasses.replace(DEMO, ladder=Wide(num_pixels=1024, patch_size=128))
"""


def test_a_study_may_have_classes_of_its_own(tmp_path):
    from ray import cloudpickle

    (tmp_path / "mine.py").write_text(OWN)
    study = load_study(str(tmp_path / "mine.py"))
    sent = cloudpickle.dumps(study)
    assert b"value" in sent, "by its content: workers cannot import the file"
    assert cloudpickle.loads(sent).model(8).width == 32
    assert {Cell(width=4, num_spectra=8, seed=0): 1}[Cell(width=4, num_spectra=8, seed=0)]
    assert isinstance(study.ladder, Ladder)


@pytest.mark.parametrize("text", ["import sys; sys.exit(0)", "raise GeneratorExit", "def __getattr__(name): 1 / 0"])
def test_a_module_that_cannot_be_loaded_is_one_line(tmp_path, text):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError, match=r"mine\.py: cannot be loaded"):
        load_study(str(tmp_path / "mine.py"))
