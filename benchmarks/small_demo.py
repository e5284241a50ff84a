"""The demo as of before 2026-11-28, a quarter of its samples and batch size; some benchmarks were recorded with it."""

import dataclasses

from experiments.demo import STUDY as DEMO
from scaling.study.declaration import Budget, Placement, Search

STUDY = dataclasses.replace(
    DEMO,
    widths=(4, 8, 16, 32),
    recipe=dataclasses.replace(DEMO.recipe, budget=Budget(samples=81_920), batch_size=64),
    search=Search(trials=5, max_lr=5e-3),
    repeat_every=2,
    placements=(Placement(), Placement(from_width=32, from_spectra=16384, workers=2)),
)
