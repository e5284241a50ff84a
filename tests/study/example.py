"""A study and a row for tests that run nothing."""

from typing import Any

from scaling.results import Row
from scaling.study.declaration import Budget, Data, DataRules, Ladder, Recipe, Search, Simulation, Study


def example_study(**changes: Any) -> Study:
    values: dict[str, Any] = {
        "name": "example",
        "question": "?",
        "data": Data(
            source=Simulation(train=512, val=64, test=64, pixels=1024, seed=3),
            num_spectra=(128, 256),
            rules=DataRules(noise="fixed"),
        ),
        "ladder": Ladder(num_pixels=1024, patch_size=128, dropout=0.0, attention_dropout=0.0),
        "widths": (4, 8),
        "recipe": Recipe(budget=Budget(samples=256), batch_size=32, precision="fp32", evaluations=2),
        "search": Search(trials=2),
        "seeds": (1,),
    }
    return Study(**(values | changes))


def example_row(**changes: Any) -> Row:
    values: dict[str, Any] = {
        "study": "example",
        "cell": "w0004-d00000128-s1",
        "trial": "w0004-d00000128-s1-t00",
        "fingerprint": "f",
        "family": "specvit",
        "rung": "w4",
        "num_params": 813,
        "num_params_nonembedding": 257,
        "num_params_total": 813,
        "num_spectra": 128,
        "held_out": False,
        "epochs": 2.0,
        "steps": 8,
        "samples_seen": 256,
        "budget": "samples",
        "budget_share": 1.0,
        "schedule": "cosine",
        "noise": "fixed",
        "train_flops": 7.8e6,
        "lr": 1e-2,
        "lr_bracketed": False,
        "weight_decay": 0.01,
        "batch_size": 32,
        "seed": 1,
        "precision": "fp32",
        "label": "log_g",
        "label_mean": 3.0,
        "label_std": 1.2,
        "val_mae_dex": 0.5,
        "val_mae_z": 0.5 / 1.2,
        "val_r2": 0.6,
        "val_mae_sem_dex": 0.01,
        "val_mae_sem_z": 0.01 / 1.2,
        "test_mae_dex": 0.5,
        "test_mae_z": 0.5 / 1.2,
        "test_r2": 0.6,
        "test_mae_sem_dex": 0.005,
        "test_mae_sem_z": 0.005 / 1.2,
        "test_rmse_dex": 0.6,
        "test_rmse_z": 0.5,
        "test_bias_dex": 0.012,
        "test_bias_z": 0.01,
        "test_p90_dex": 1.2,
        "test_p90_z": 1.0,
        "test_guess_mae_dex": 1.0,
        "test_by_snr": "[]",
        "test_by_label": "[]",
        "val_error_rate": 0.25,
        "test_error_rate": 0.25,
        "other_labels": "{}",
        "eval_draws": 1,
        "num_val": 64,
        "num_test": 64,
        "best_epoch": 2.0,
        "eval_pin": "pin",
        "status": "done",
        "error": "",
        "access": "mapped",
        "host": "process",
        "workers": 1,
        "device": "cpu",
        "skipped_steps": 0,
        "device_seconds": 1.0,
        "wall_seconds": 1.5,
        "samples_per_second": 256.0,
        "peak_flops": 1e11,
        "mfu": 0.1,
        "code_commit": "unknown",
        "versions": "{}",
    }
    return Row(**(values | changes))
