"""Scores as columns of a results row; also used by `scaling evaluate`."""

from __future__ import annotations

import math
from typing import Any

from scaling.training.metrics import Classified, Detail, Scores


def score_columns(split: str, found: Scores | Classified | None, z: float) -> dict[str, Any]:
    """Columns for the scores of a split; `z` converts dex to label standard deviations. NaN where there are none."""
    regression = found if isinstance(found, Scores) else None
    mae, sem = (regression.mae, regression.mae_sem) if regression else (math.nan, math.nan)
    return {
        **_in_both_units(f"{split}_mae", mae, z),
        **_in_both_units(f"{split}_mae_sem", sem, z),
        f"{split}_r2": regression.r2 if regression else math.nan,
        f"{split}_error_rate": found.error_rate if isinstance(found, Classified) else math.nan,
        f"num_{split}": found.count if found else 0,
    }


def detail_columns(split: str, found: Scores | Classified | None, detail: Detail | None, z: float) -> dict[str, Any]:
    """Columns for the remaining error statistics of a split; bins are lists."""
    rmse, bias = (found.rmse, found.bias) if isinstance(found, Scores) else (math.nan, math.nan)
    return {
        **_in_both_units(f"{split}_rmse", rmse, z),
        **_in_both_units(f"{split}_bias", bias, z),
        **_in_both_units(f"{split}_p90", detail.p90 if detail else math.nan, z),
        f"{split}_guess_mae_dex": detail.guess_mae if detail else math.nan,
        f"{split}_by_snr": detail.by_snr if detail else [],
        f"{split}_by_label": detail.by_label if detail else [],
    }


def _in_both_units(name: str, dex: float, z: float) -> dict[str, float]:
    return {f"{name}_dex": dex, f"{name}_z": dex * z}
