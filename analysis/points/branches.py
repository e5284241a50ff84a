"""Results of shorter budgets, from branches of warm-up-stable-decay runs, separated from those of whole budgets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from analysis.points.trials import CELL, best_trials, require_columns
from scaling.results import measure_of

_TRIAL = ["study", "trial"]


def whole_budgets(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of whole budgets; their `device_seconds` include the trial's branches, so that they are its total cost.

    Raises:
        UserError: Columns are missing.
    """
    require_columns(rows)
    spent = rows.drop_duplicates().groupby(_TRIAL)["device_seconds"].sum(min_count=1)
    whole = rows[rows["budget_share"] == 1]
    places = pd.MultiIndex.from_frame(whole[_TRIAL])
    return whole.assign(device_seconds=spent.reindex(places).to_numpy(float)).reset_index(drop=True)


def shorter_budgets(rows: pd.DataFrame) -> dict[str, Any] | None:
    """The results of each budget share, over the cells that have a result for every share; None without branches.

    Returns:
        `cells`, the number of such cells, and `lines`, one per share: `share`, `samples` ([min, max] seen), `error` (mean
        over the cells, in the measure's unit), `above` (geometric mean of the error relative to that at the whole budget,
        minus 1) with its standard error over the cells `sem` (None for a single cell), `hours` (device-hours of all
        trials, excluding what they share with a shorter budget).
    """
    if (rows["budget_share"] == 1).all():
        return None
    measure, place = measure_of(rows), [name for name in CELL if name != "budget_share"]
    errors = best_trials(rows).cells.pivot_table(index=place, columns="budget_share", values=measure.test).dropna()
    if 1.0 not in errors or not len(errors):
        return None
    lines = []
    for share in errors:
        here = rows[rows["budget_share"] == share]
        ratio = np.log(errors[share] / errors[1.0])
        lines.append(
            {
                "share": float(share),
                "samples": [int(here["samples_seen"].min()), int(here["samples_seen"].max())],
                "error": float(errors[share].mean()),
                "above": float(np.expm1(ratio.mean())),
                "sem": float(ratio.std(ddof=1) / np.sqrt(len(ratio))) if len(ratio) > 1 else None,
                "hours": float(here["device_seconds"].sum()) / 3600,
            }
        )
    return {"cells": len(errors), "lines": lines}
