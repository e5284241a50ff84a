"""The real study: log g from a million BOSZ spectra seen by the PFS, D from 12.5k to 1M, N from 0.03 M to 32 M.

    BOSZ_1M=/data/mag205_225_lowT_1M SHARDS=/data/shards/bosz_1m scaling plan experiments.bosz_1m
    BOSZ_1M=... SHARDS=... scaling run experiments.bosz_1m --store /data/results

The recipe is the original study's, except for bf16 instead of fp16, standardised inputs, and a schedule that is updated each
step after a warm-up. Noise is one fixed draw per spectrum and every trial sees 25.6 M samples (100 epochs of 256k), so
that the D axis is the number of distinct spectra; for the original's axis set noise="fresh" and Budget(epochs=200).

Not run yet: neither its duration nor its results are known. `scaling plan` counts its FLOPs exactly and estimates its hours
from an assumed speed.
"""

import os
from pathlib import Path

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
    Sources,
    Study,
)

SOURCE = Path(os.environ.get("BOSZ_1M", "mag205_225_lowT_1M"))

STUDY = Study(
    name="bosz_1m",
    question="Does the error of log g from PFS spectra stop at 0.36 sigma because of the model, the data or the noise?",
    data=Data(
        source=Sources(
            shards=Path(os.environ.get("SHARDS", "shards/bosz_1m")),
            train=tuple(SOURCE / f"train_200k_{i}" / "dataset.h5" for i in range(5)),
            val=SOURCE / "val_1k" / "dataset.h5",
            test=SOURCE / "test_10k" / "dataset.h5",
        ),
        num_spectra=(12_500, 25_000, 50_000, 100_000, 200_000, 400_000, 1_000_000),
        rules=DataRules(label="log_g", noise="fixed", input_norm="mean_spectrum"),
    ),
    ladder=Ladder(num_pixels=4096, patch_size=16, dropout=0.1, attention_dropout=0.0),
    widths=(32, 64, 96, 128, 192, 256, 384, 544),
    recipe=Recipe(
        budget=Budget(samples=25_600_000),
        batch_size=256,
        weight_decay=0.01,
        clip_norm=0.5,
        schedule_unit="step",
        warmup=0.02,
        precision="bf16",
        evaluations=50,
    ),
    search=Search(trials=5),
    seeds=(42, 43),
    baselines=(Ridge(cpus=4), LightGBM(draws=1, cpus=8)),
    placements=(
        Placement(gpus=0.25, cpus=2),
        Placement(from_width=128, gpus=0.5, cpus=3),
        Placement(from_width=256, gpus=1, cpus=6),
        Placement(from_width=544, gpus=1, cpus=6, workers=2),
    ),
)
