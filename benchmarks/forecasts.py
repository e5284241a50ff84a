"""Forecasts of published studies' larger runs from their smaller ones: how many lie within their interval.

    python -m benchmarks.forecasts FOLDER [--form auto] [--objective lsq] [--weigh backtest] [--json OUT]

FOLDER, and its parent, contain CSV files of N, D and loss (see `tables`). Exact duplicates are dropped; runs are sorted by
compute (the column `budget`, else 6·N·D); the lower half, and again the lower two thirds, are fitted (without splitting budgets if there
is such a column); the others, at most 80 at random, are forecast, each with a 90 % interval for one new run. A family's row is the mean
over its tables and splits: coverage, root mean square of log(observed / forecast), median log width, interval score (log width + 20 ×
the distance outside), share flagged, coverage of the unflagged, root mean square of the flagged and of the others.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.answers.forecast import prediction_table
from analysis.fitting.extrapolation import smallest
from analysis.intervals.compare import compare
from analysis.points.table import Points
from scaling.errors import UserError

SHARES, MOST, LEVEL = (1 / 2, 2 / 3), 80, 0.9
NAMES = ("coverage", "rms", "width", "score", "flagged", "unflagged", "rms flagged", "rms others")


def tables(folder: Path) -> dict[str, list[pd.DataFrame]]:
    """The tables (N, D, loss, and compute) of each family found in a folder or its parent."""
    found: dict[str, list[pd.DataFrame]] = {}
    for file in sorted(folder.glob("gadre_*.csv")):
        frame = pd.read_csv(file)
        for size, loss in (("N", "loss_c4_val"), ("N", "loss_openlm"), ("N_noemb", "loss_c4_val")):
            found.setdefault("Gadre", []).append(_table(frame[size], frame["D"], frame[loss]))
    for file in sorted(folder.glob("marin_*.csv")):
        frame = pd.read_csv(file)
        found.setdefault("Marin", []).append(_table(frame["N"], frame["D"], frame["loss"], frame["budget"]))
    if (file := folder.parent / "chinchilla_epoch.csv").is_file():
        frame = pd.read_csv(file)
        for part in (frame, frame[~frame["dropped_by_reference"]]):
            found.setdefault("Chinchilla", []).append(_table(part["N"], part["D"], part["loss"]))
    if (file := folder.parent / "isoflop_llama_3_raw_loss.csv").is_file():
        frame = pd.read_csv(file)
        found.setdefault("Llama 3", []).append(_table(frame["N"], frame["D"], frame["loss"]))
    return found


def _table(N: Any, D: Any, loss: Any, budget: Any = None) -> pd.DataFrame:
    frame = pd.DataFrame({"N": N, "D": D, "loss": loss}).astype(float)
    frame["C"] = 6.0 * frame["N"] * frame["D"] if budget is None else budget
    return frame.dropna().drop_duplicates().sort_values("C", ignore_index=True)


def forecast_rest(
    table: pd.DataFrame, share: float, form: str, objective: str, weigh: str = "backtest"
) -> dict[str, float] | None:
    """Fit the smallest runs of a table, forecast the others, and score the forecasts; None if no law can be fitted."""
    small = smallest(table["C"].to_numpy(), share)
    points = Points(**{name: table.loc[small, name].to_numpy() for name in ("N", "D", "loss")})
    rest = table[~small]
    if len(rest) > MOST:
        rest = rest.iloc[np.sort(np.random.default_rng(0).choice(len(rest), MOST, replace=False))]
    try:
        fitted = compare(
            points, None if form == "auto" else (form,), objective=objective, level=LEVEL, replicates=300, weigh=weigh
        )
        cast = prediction_table(fitted, rest["N"].to_numpy(), rest["D"].to_numpy())
    except UserError as error:
        print(f"  no forecast: {error}")
        return None
    seen, low, high = np.log(rest["loss"].to_numpy()), np.log(cast["low"].to_numpy()), np.log(cast["high"].to_numpy())
    inside, outside = (low <= seen) & (seen <= high), np.maximum(low - seen, 0) + np.maximum(seen - high, 0)
    flagged = cast["flags"].map(len).to_numpy() > 0
    miss = np.log(cast["value"].to_numpy()) - seen
    return {
        "coverage": float(inside.mean()),
        "rms": _rms(miss),
        "width": float(np.median(high - low)),
        "score": float(np.mean(high - low + 2 / (1 - LEVEL) * outside)),
        "flagged": float(flagged.mean()),
        "unflagged": float(inside[~flagged].mean()) if not flagged.all() else np.nan,
        "rms flagged": _rms(miss[flagged]),
        "rms others": _rms(miss[~flagged]),
    }


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2))) if len(values) else np.nan


def main() -> None:
    """Run, print one row per family, and write the requested output."""
    parser = argparse.ArgumentParser(description="Forecasts of published studies' larger runs from their smaller ones.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--form", default="auto")
    parser.add_argument("--objective", default="lsq")
    parser.add_argument("--weigh", choices=("backtest", "aicc"), default="backtest")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    families, started = tables(options.folder), time.perf_counter()
    if not families:
        print(f"{options.folder}: none of the tables is there; nothing was measured")
        return
    print(f"{'family':14}" + "".join(f"{name:>12}" for name in NAMES))
    means = {}
    for family, each in families.items():
        scores = [
            forecast_rest(table, share, options.form, options.objective, options.weigh)
            for table in each
            for share in SHARES
        ]
        frame = pd.DataFrame([score for score in scores if score is not None])
        means[family] = frame.mean().to_dict()
        print(f"{family:10}{len(frame):4}" + "".join(f"{means[family][name]:12.3f}" for name in NAMES), flush=True)
    print(f"{time.perf_counter() - started:.0f} s")
    if options.json:
        options.json.write_text(json.dumps(vars(options) | {"families": means}, default=str, indent=1))


if __name__ == "__main__":
    main()
