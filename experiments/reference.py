"""The original study's curve: its model, recipe and noise, trained on 50k to a million spectra.

    BOSZ_1M=/data/mag205_225_lowT_1M SHARDS=/data/shards/bosz_1m scaling plan experiments.reference
    BOSZ_1M=... SHARDS=... scaling run experiments.reference --store /data/results

All settings are the original's: 4,809,729 parameters, raw flux, fresh noise each epoch, L1 on z-scored log g, AdamW at 3e-4, a cosine
updated once an epoch over 200 epochs, fp16, seed 42, one learning rate. It reported test MAEs of 0.575, 0.472, 0.415, 0.383 and 0.372
standard deviations (the last on the 1,000 validation spectra); compare them with `test_mae_z`. Its published curve used a
weight decay of 1e-4, its best checkpoint 0.01. Not run yet.

Its own checkpoint is scored with `scaling evaluate best.ckpt SHARDS`.
"""

import dataclasses

from experiments.bosz_1m import STUDY as BOSZ_1M
from scaling.study.declaration import Budget, DataRules, Ladder, Placement, Recipe, Search, Study

STUDY = Study(
    name="reference",
    question="Does the original study's curve over the number of spectra come out again?",
    data=dataclasses.replace(
        BOSZ_1M.data,
        num_spectra=(50_000, 100_000, 200_000, 500_000, 1_000_000),
        rules=DataRules(label="log_g", noise="fresh", input_norm="none"),
    ),
    ladder=Ladder(),
    widths=(256,),
    recipe=Recipe(budget=Budget(epochs=200), weight_decay=1e-4, precision="fp16", schedule_unit="epoch"),
    search=Search(trials=1, reference_lr=3e-4),
    seeds=(42,),
    hold_out_edge=False,
    placements=(Placement(gpus=1, cpus=6),),
)
