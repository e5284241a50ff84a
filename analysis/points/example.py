"""A synthetic results table for trying out the notebooks, the report and the figures before a study has run."""

from __future__ import annotations

import dataclasses
import itertools
import json
import typing

import numpy as np
import pandas as pd

from scaling.results import Row, to_table

SIZES = (3_000, 12_000, 48_000, 192_000, 768_000)
DATA = (1_024, 2_048, 4_096, 8_192, 16_384, 32_768)
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
LAW = {"E": 0.06, "A": 12.0, "alpha": 0.45, "B": 9.0, "beta": 0.5}
"""Chinchilla's form, in dex."""

_EPOCHS = 4
_SEEDS = (0, 1)
_SCATTER = 0.015  # of log MAE between seeds
_BINS = (2.0, 4.0, 6.0, 9.0, 13.0, 20.0)


def example_rows(*, seed: int = 0) -> pd.DataFrame:
    """Synthetic results of a study: errors follow `LAW` with scatter; the largest N and D are held out.

    Every name in it says "example". Do not publish its numbers.

    Args:
        seed: Seed of the scatter.

    Returns:
        A table of `scaling.results.Row`: 5 sizes × 6 numbers of spectra × 2 seeds × 4 learning rates.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for rung, N in enumerate(SIZES):
        best_rate = 2e-3 * (N / 12_000) ** -0.2
        for D in DATA:
            for run in _SEEDS:
                cell = f"example-{rung}-{D}-{run}"
                mae = LAW["E"] + LAW["A"] * N ** -LAW["alpha"] + LAW["B"] * D ** -LAW["beta"]
                mae *= np.exp(rng.normal(0, _SCATTER))
                away = np.log10(np.array(RATES) / best_rate) ** 2
                for place, rate in enumerate(RATES):
                    tuned = mae * (1 + 0.3 * (away[place] - away.min()))
                    row = _row(rung, N, D, run, cell, f"{cell}-{place}", rate, tuned)
                    rows.append(dataclasses.replace(row, held_out=SIZES[-1] == N or DATA[-1] == D))
    return to_table(rows).to_pandas()


def _row(rung: int, N: int, D: int, seed: int, cell: str, trial: str, rate: float, mae: float) -> Row:
    """A finished trial with a given test error in dex."""
    empty = {int: 0, float: float("nan"), bool: False}
    values = {name: empty.get(kind, "") for name, kind in typing.get_type_hints(Row).items()}
    values |= {
        "study": "example",
        "cell": cell,
        "trial": trial,
        "fingerprint": "example",
        "family": "specvit",
        "rung": f"w{8 * 2**rung}",
        "num_params": N,
        "num_params_nonembedding": N,
        "num_params_total": N,
        "num_spectra": D,
        "epochs": float(_EPOCHS),
        "steps": _EPOCHS * D // 256,
        "samples_seen": _EPOCHS * D,
        "budget": "epochs",
        "noise": "fixed",
        "train_flops": 6.0 * 257 * N * _EPOCHS * D,
        "lr": rate,
        "batch_size": 256,
        "seed": seed,
        "precision": "example",
        "budget_share": 1.0,
        "schedule": "example",
        "label": "log_g",
        "label_mean": 3.0,
        "label_std": 1.15,
        "val_mae_dex": mae,
        "test_mae_dex": mae,
        "test_mae_sem_dex": 0.8 * mae / np.sqrt(10_000),
        "test_rmse_dex": 1.3 * mae,
        "test_guess_mae_dex": 1.0,
        "test_by_snr": _by_snr(mae),
        "test_by_label": "[]",
        "num_val": 1_000,
        "num_test": 10_000,
        "best_epoch": float(_EPOCHS),
        "eval_pin": "example",
        "status": "done",
        "device": "example",
        "device_seconds": 2e-9 * N * _EPOCHS * D,
        "workers": 1,
    }
    return Row(**values)  # type: ignore[arg-type]


def _by_snr(mae: float) -> str:
    """Errors that decrease with signal to noise and have mean `mae`."""
    edges = list(itertools.pairwise(_BINS))
    shape = np.array([(low * high) ** -0.4 for low, high in edges])
    errors = mae * shape / shape.mean()
    bins = [
        {"low": low, "high": high, "count": 2_000, "mae_dex": error, "bias_dex": 0.0, "rmse_dex": 1.3 * error}
        | {"sem_dex": (1.3**2 - 1) ** 0.5 * error / 2_000**0.5}
        for (low, high), error in zip(edges, errors, strict=True)
    ]
    return json.dumps(bins)
