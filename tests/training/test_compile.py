"""`torch.compile` changes a step by rounding only, and the state not at all."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

STEPS = 5
# A process of its own: what checks shapes in tests cannot be compiled.
PROGRAM = f"""
import json, torch
from benchmarks.training import InMemory
from scaling.model.ladder import Ladder
from scaling.training.recipe import Budget, Recipe
from scaling.training.step import Stepper

config = Ladder(num_pixels=256, patch_size=64, dropout=0.0, attention_dropout=0.0).rung(4)
recipe = Recipe(budget=Budget(epochs={STEPS}), batch_size=16, precision="fp32", schedule_unit="step")
(run,) = recipe.runs(16)
torch.manual_seed(0)
batches = InMemory(torch.randn(16, 256), torch.randn(16, 1))
found = []
for compiled in (False, True):
    stepper = Stepper(config, recipe, batches, lr=1e-2, seed=1, compiled=compiled)
    losses = []
    for step in range({STEPS}):
        stepper.step(step, run)
        losses.append(stepper.mean_loss())
    found.append([losses, list(stepper.state()["model"])])
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_a_compiled_step_is_the_eager_one_to_rounding():
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    (eager, names), (compiled, compiled_names) = json.loads(done.stdout)
    assert compiled == pytest.approx(eager, rel=1e-4)
    assert eager[-1] < eager[0]
    assert compiled_names == names
