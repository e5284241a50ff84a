"""The embedded study: how log g from simulated PFS spectra improves with distinct spectra and with parameters.

    make demo            or     scaling run experiments.demo --store results

Noise is one fixed draw a spectrum and every trial sees the same number of samples, so the D axis is distinct
spectra and nothing else.
"""

from scaling.study.declaration import (
    Budget,
    Data,
    DataRules,
    Ladder,
    LightGBM,
    Placement,
    Recipe,
    Ridge,
    Search,
    Simulation,
    Study,
)

STUDY = Study(
    name="demo",
    question="How does the error of log g fall with distinct spectra and with parameters, and where does it stop?",
    data=Data(
        source=Simulation(train=16384, val=2048, test=8192, seed=0, pixels=1024, mag_range=(17.5, 19.5)),
        num_spectra=(512, 1024, 2048, 4096, 8192, 16384),
        rules=DataRules(label="log_g", noise="fixed", input_norm="mean_spectrum"),
    ),
    ladder=Ladder(num_pixels=1024, patch_size=128, dropout=0.0, attention_dropout=0.0),
    widths=(4, 8, 16, 32),
    recipe=Recipe(
        budget=Budget(samples=81_920),
        batch_size=64,
        betas=(0.9, 0.98),
        clip_norm=1.0,
        schedule_unit="step",
        warmup=0.1,
        final_lr_fraction=0.0,
        precision="fp32",
        evaluations=16,
    ),
    search=Search(trials=5, max_lr=5e-3),
    seeds=(42, 43),
    repeat_every=2,  # a lack-of-fit test needs a second seed in half of the cells that are fitted
    baselines=(Ridge(), LightGBM(trees=1000)),
    placements=(Placement(), Placement(from_width=32, from_spectra=16384, workers=2)),
)
