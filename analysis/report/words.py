"""Sentences and formatted numbers of the report."""

from __future__ import annotations

import json
import math
import re

import pandas as pd

from analysis.answers.budget import ErrorBudget
from analysis.answers.forecast import prediction_table
from analysis.intervals.compare import Comparison, compare_alike
from analysis.intervals.profile import Interval
from analysis.points.anchors import Anchor
from analysis.report.figures.style import GREEK, label_name, short
from scaling.results import measure_of


def question(rows: pd.DataFrame) -> str:
    """The question of the study."""
    return (
        f"How far does the {measure_of(rows).noun} of {label_name(rows)} fall with training spectra (D) and model "
        "parameters (N), and where does it stop?"
    )


def axis_meaning(cells: pd.DataFrame) -> str:
    """What the D axis of the study shows, which depends on its noise and budget."""
    noise, budget = cells[["noise", "budget"]].iloc[0]  # all cells have the same, see `best_trials`
    drawn = "one fixed noise draw a spectrum" if noise == "fixed" else "noise drawn afresh each epoch"
    spent = "the same number of samples seen for every cell" if budget == "samples" else "a fixed number of epochs"
    meaning = {
        ("fixed", "samples"): "the D axis is unique data: training length does not change along it",
        ("fresh", "epochs"): "the D axis is mostly training length: D sets the number of steps, and every epoch brings "
        "new noise, so the curve does not show what more distinct spectra are worth",
        ("fixed", "epochs"): "the D axis mixes unique data with training length: both grow together",
        (
            "fresh",
            "samples",
        ): "training length is the same along the D axis, but fresh noise makes each epoch partly new "
        "data, so the curve understates what distinct spectra are worth with one draw each",
    }[noise, budget]
    return f"With {drawn} and {spent}, {meaning}."


def lowest(cells: pd.DataFrame) -> str:
    """The lowest measured error, as a clause."""
    measure = measure_of(cells)
    best = cells.loc[cells[measure.test].idxmin()]
    return (
        f"The lowest test {measure.noun} is {measure.value(best[measure.test])}, reached by the model of "
        f"{short(best['num_params'])} parameters on {short(best['num_spectra'])} spectra"
    )


def trial(row: pd.Series) -> str:
    """A trial's numbers in a few lines, for a point in a figure."""
    measure = measure_of(row.to_frame().T)
    return (
        f"N = {row['num_params']:,}, D = {row['num_spectra']:,}\n"
        f"test {measure.named(row[measure.test])}, validation {measure.value(row[measure.val])}\n"
        f"learning rate {row['lr']:.3g}, seed {row['seed']}, {row['epochs']:.3g} epochs"
    )


def more(row: pd.Series) -> str:
    """The scenario of a row of gains: more data, or a larger model."""
    factor, what = row["scenario"].split("× ")
    return f"{factor} times the data" if what == "data" else f"a model {factor} times as large"


def fall(row: pd.Series) -> tuple[str, str]:
    """The change of the error in a row of gains: the interval, and the best value."""
    low, best, high = (round(100 * row[name]) for name in ("gain_low", "gain", "gain_high"))
    side = "less" if best >= 0 else "more"
    if low < 0 < high:
        return f"{-low} % more to {high} % less error", f"best {abs(best)} % {side}"
    ends = sorted((abs(low), abs(high)))
    return f"{ends[0]} to {ends[1]} % {side} error", f"best {abs(best)} %"


def shares(budget: ErrorBudget, final: Comparison) -> str:
    """The error budget as a sentence."""
    names = {
        "irreducible": "a floor that neither removes at this recipe and training length",
        "capacity": "too small a model",
        "data": "too little data",
        "repetition": "seeing the same spectra again",
    }
    parts = [
        f"{100 * row['share_low']:.0f} to {100 * row['share_high']:.0f} % (best {100 * row['share']:.0f} %) to "
        f"{names[row['term']]}"
        for _, row in budget.table.iloc[::-1].iterrows()
    ]
    spread = float((budget.table["share_high"] - budget.table["share_low"]).max())
    closing = "; the intervals are wide, so the cells do not yet tell the parts apart" if spread > 0.5 else ""
    return (
        f"Of its error there, the law ({budget.form}) gives {', '.join(parts[:-1])} and {parts[-1]} "
        f"({100 * final.level:g} % intervals){closing}."
    )


def anchor(found: Anchor) -> str:
    """The score of an external model on the study's test spectra."""
    return (
        f"Beside the study: {found.name} (N = {found.num_params:,}, D = {found.num_spectra:,}) has a test MAE of "
        f"{found.test_mae_dex:.3f} ± {found.test_mae_sem_dex:.3f} dex ({found.test_mae_z:.3f} z, R² {found.test_r2:.3f}) on the "
        f"same {found.num_test:,} test spectra with the same noise. It was trained outside this study and is not part of the fit."
    )


def beside_chinchilla(comparison: Comparison) -> str:
    """Why another form than Chinchilla's was selected, and Chinchilla's result; "" if there is nothing to add."""
    best, errors = comparison.best, comparison.extrapolation.errors
    if best in ("chinchilla", "tied") or not {"chinchilla", best} <= set(comparison.usable):
        return ""
    gap = comparison.aicc["chinchilla"] - comparison.aicc[best]
    why = f"{best} is selected over Chinchilla's form because its AICc is lower by {gap:.3g}"
    if gap < 0:
        why = f"{best} is selected over Chinchilla's form because it has fewer parameters, at an AICc higher by only {-gap:.2g}"
    if {"chinchilla", best} <= set(errors):
        own, plain = (f"{100 * errors[form]:.2g} %" for form in (best, "chinchilla"))
        why += f"; fitted to the smaller runs it misses the larger by {own}, Chinchilla's by {plain}"
    points, alone = comparison.points, compare_alike(comparison, comparison.points, ["chinchilla"])
    N, D, S = (
        4 * points.N.max(),
        4 * points.D.max(),
        points.S.max() if points.S is not None and points.samples_vary else None,
    )
    casts = [prediction_table(each, N, D, S) for each in (alone, comparison)]
    ends = [f"{significant(cast['low'][0])} to {significant(cast['high'][0])}" for cast in casts]
    where = f"At N = {short(N)} and D = {short(D)}, four times the largest of each,"
    return f"{why}. {where} Chinchilla's form alone forecasts {ends[0]}, all forms by their weights {ends[1]}."


def parameters(comparison: Comparison) -> str:
    """The parameters of the selected form with their intervals, in one line."""
    intervals = comparison.intervals[comparison.best]
    parts = ", ".join(
        f"{GREEK.get(name, name)} {bounds(intervals.get(name))} (best {significant(value)})"
        for name, value in comparison.law.parameters.items()
    )
    return f"{comparison.best}: {parts}"


def greek(formula: str) -> str:
    """A formula with Greek letters: "A/N^alpha" becomes A/N^α."""
    return re.sub(r"[A-Za-z]+[0-9]?", lambda found: GREEK.get(found[0], found[0]), formula)


def bounds(interval: Interval | None) -> str:
    """Format an interval: "0.12 to 0.15"; undetermined ends are described as open."""
    if interval is None:
        return "not known"
    low, high = interval
    if math.isinf(low) and math.isinf(high):
        return "not determined"
    if math.isinf(high):
        return f"above {significant(low)}" if low else "not determined"
    if math.isinf(low):
        return f"below {significant(high)}"
    return f"{significant(low)} to {significant(high)}"


def significant(value: float) -> str:
    """Format with three significant digits, without an exponent if readable: 1,900, 0.131, 8.2·10⁵."""
    if value == 0:
        return "0"
    if not math.isfinite(value):
        return "–" if math.isnan(value) else "∞" if value > 0 else "−∞"
    exponent = math.floor(math.log10(abs(value)))
    if -4 <= exponent <= 4:
        return f"{round(value, 2 - exponent):,.{max(2 - exponent, 0)}f}"
    mantissa, power = f"{value:.1e}".split("e")
    return f"{mantissa}·10{str(int(power)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def versions(column: pd.Series) -> str:
    """The software versions of the rows, from their JSON: "torch 2.13, ray 2.60"."""
    parts = []
    for text in sorted(column.dropna().astype(str).unique()):
        try:
            parts.append(", ".join(f"{name} {version}" for name, version in json.loads(text).items()))
        except (ValueError, AttributeError):
            parts.append(text)
    return "; ".join(parts)
