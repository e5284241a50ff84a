"""The whole pipeline in about a minute: 2 sizes x 3 numbers of spectra x 2 learning rates, also run by the tests.

    scaling run experiments.smoke --store DIR

The demo's rules on a smaller grid: it shows that the pipeline works, but its law is meaningless.
"""

import dataclasses

from experiments.demo import STUDY as DEMO
from scaling.study.declaration import Budget, Data, LightGBM, Placement, Ridge, Search, Simulation

STUDY = dataclasses.replace(
    DEMO,
    name="smoke",
    question="Does the chain from spectra to report work on this machine?",
    data=Data(
        source=Simulation(train=1024, val=256, test=512, seed=1, pixels=1024, mag_range=(17.5, 19.5)),
        num_spectra=(256, 512, 1024),
        rules=DEMO.data.rules,
    ),
    widths=(4, 8),
    recipe=dataclasses.replace(DEMO.recipe, budget=Budget(samples=8_192), batch_size=64, evaluations=4),
    search=Search(trials=2),
    seeds=(42,),
    baselines=(Ridge(), LightGBM(trees=50)),
    placements=(Placement(), Placement(from_width=8, from_spectra=1024, workers=2)),
)
