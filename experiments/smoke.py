"""The whole chain in about a minute: 2 sizes x 3 numbers of spectra x 2 learning rates, as the tests run it.

    scaling run experiments.smoke --store DIR

It shows that the chain works; its law means nothing.
"""

from scaling.study.declaration import (
    Budget,
    Data,
    DataRules,
    Ladder,
    Placement,
    Recipe,
    Search,
    Simulation,
    Study,
)

STUDY = Study(
    name="smoke",
    question="Does the chain from spectra to report work on this machine?",
    data=Data(
        source=Simulation(train=1024, val=256, test=512, seed=1, pixels=1024, mag_range=(17.5, 19.5)),
        num_spectra=(256, 512, 1024),
        rules=DataRules(label="log_g", noise="fixed", input_norm="mean_spectrum"),
    ),
    ladder=Ladder(num_pixels=1024, patch_size=128, dropout=0.0, attention_dropout=0.0),
    widths=(4, 8),
    recipe=Recipe(
        budget=Budget(samples=8_192),
        batch_size=64,
        betas=(0.9, 0.98),
        clip_norm=1.0,
        schedule_unit="step",
        warmup=0.1,
        final_lr_fraction=0.0,
        precision="fp32",
        evaluations=4,
    ),
    search=Search(trials=2, factors=(1.0,), round_size=1),
    placements=(Placement(), Placement(from_width=8, from_spectra=1024, workers=2)),
)
