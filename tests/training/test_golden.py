"""The first 20 losses of each recipe, as they were: a change of the model, the data or the step shows here.

pytest tests/training/test_golden.py --write-golden       # after a change that is meant
"""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from experiments.bosz_1m import STUDY as BOSZ_1M
from experiments.demo import STUDY as DEMO
from scaling.data.batches import DataRules, Worker, training_batches
from scaling.model.ladder import Ladder
from scaling.training.recipe import Budget, Recipe
from scaling.training.step import Stepper

STEPS = 20
GOLDEN = Path(__file__).parents[1] / "golden" / "losses.json"
LADDER = Ladder(num_pixels=1024, patch_size=64)
ORIGINAL = Recipe(budget=Budget(epochs=200))
BRANCHED = Recipe(
    budget=Budget(samples=1280), schedule="wsd", warmup=0.1, decay=0.5, precision="fp32", loss="huber", branches=(0.5,)
)
CASES = {
    "original": (ORIGINAL, LADDER, DataRules(input_norm="none")),
    "original in fp32": (dataclasses.replace(ORIGINAL, precision="fp32"), LADDER, DataRules(input_norm="none")),
    "bosz_1m": (BOSZ_1M.recipe, dataclasses.replace(LADDER, attention_dropout=0.0), BOSZ_1M.data.rules),
    "demo": (
        dataclasses.replace(DEMO.recipe, budget=Budget(samples=81_920)),
        dataclasses.replace(LADDER, dropout=0.0, attention_dropout=0.0),
        DEMO.data.rules,
    ),
    "sliding window, rotary, wsd, huber": (
        BRANCHED,
        dataclasses.replace(LADDER, tokenizer="sliding", stride=48, positions="rope", dropout=0.0),
        DataRules(input_norm="per_pixel", label_norm="minmax"),
    ),
}
TOLERANCE = {"fp32": 2e-4, "bf16": 2e-2, "fp16": 5e-3}


def losses(shards, cache_root, recipe, ladder, rules):
    recipe = dataclasses.replace(recipe, batch_size=64)
    batches = training_batches(
        shards,
        rules,
        200,
        64,
        seed=1,
        worker=Worker(cache_root=cache_root, device=torch.device("cpu")),
        access="mapped",
    )
    stepper = Stepper(ladder.rung(32), recipe, batches, lr=1e-3, seed=1)
    run = recipe.runs(200)[-1]
    found = []
    for step in range(STEPS):
        stepper.step(step, run)
        found.append(stepper.mean_loss())
    batches.close()
    return found


@pytest.mark.parametrize("name", CASES)
def test_the_first_losses_are_the_golden_ones(name, shards, cache_root, request):
    recipe, ladder, rules = CASES[name]
    found = losses(shards, cache_root, recipe, ladder, rules)
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if request.config.getoption("--write-golden"):
        GOLDEN.write_text(json.dumps(golden | {name: found}, indent=1) + "\n")
    else:
        assert found == pytest.approx(golden[name], rel=TOLERANCE[recipe.precision])
