"""The embedded study: how log g from simulated PFS spectra improves with distinct spectra and with parameters.

    make demo            or     scaling run experiments.demo --store results

Noise is one fixed draw per spectrum and every trial sees the same number of samples, so the D axis is the number of
distinct spectra and nothing else.
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
    widths=(4, 8, 16, 24),
    recipe=Recipe(
        budget=Budget(samples=262_144),
        batch_size=256,
        betas=(0.9, 0.98),
        clip_norm=1.0,
        schedule_unit="step",
        warmup=0.1,
        final_lr_fraction=0.0,
        precision="fp32",
        evaluations=16,
    ),
    search=Search(trials=4, reference_lr=1e-3, max_lr=1e-2, seed_noise=0.03),
    seeds=(42, 43),
    baselines=(Ridge(), LightGBM(trees=1000)),
    placements=(Placement(), Placement(from_width=24, from_spectra=16384, workers=2)),
)
