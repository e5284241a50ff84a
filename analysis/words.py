"""Sentences and numbers of the report, as people read them."""

from __future__ import annotations

import json
import math

import pandas as pd

from analysis.compare import Comparison, HeldOut
from analysis.figures import label_name, short
from analysis.frontier import ErrorBudget, error_budget, what_would_it_buy


def question(cells: pd.DataFrame) -> str:
    """What the study asks."""
    return f"How far does the error of {label_name(cells)} fall with training spectra (D) and model parameters (N), and where does it stop?"


def axis_meaning(cells: pd.DataFrame) -> str:
    """What the D axis of the study shows, which its noise and its budget decide."""
    kinds = set(zip(cells["noise"], cells["budget"], strict=True))
    if len(kinds) > 1:
        listed = ", ".join(sorted(f"{noise} noise with a budget in {budget}" for noise, budget in kinds))
        return f"The cells mix rules ({listed}): the D axis has no single meaning, so compare cells of one rule only."
    noise, budget = next(iter(kinds))
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
    }.get((noise, budget), "what the D axis shows depends on rules that this report does not know")
    return f"With {drawn} and {spent}, {meaning}."


def answer(cells: pd.DataFrame, law: Comparison | None, score: HeldOut | None, problem: str) -> list[str]:
    """The answer in about three sentences.

    Args:
        cells: the cells of the law's family.
        law: the fit to all cells, or None.
        score: the score of the fit that was made without the held-out cells, or None.
        problem: why there is no law, if there is none.
    """
    best = cells.loc[cells["test_mae_dex"].idxmin()]
    first = (
        f"The lowest test error is {best['test_mae_dex']:.3f} dex, reached by the model of {short(best['num_params'])} "
        f"parameters on {short(best['num_spectra'])} spectra"
    )
    if law is None:
        return [f"{first}.", f"There is no law of error over N and D here: {problem}."]
    n, d = float(cells["num_params"].max()), float(cells["num_spectra"].max())
    gains = what_would_it_buy(law, n, d).set_index("scenario")
    data, model = gains.iloc[1], gains.iloc[2]
    sentences = [
        f"{first}; from the largest cell (N = {short(n)}, D = {short(d)}), {_gain(data, 'four times the data')} and "
        f"{_gain(model, 'a model four times as large')} ({100 * law.bootstrap.level:g} % intervals of the law)."
    ]
    budget = error_budget(law, n, d)
    if budget is not None:
        sentences.append(shares(budget))
    if score is None:
        sentences.append("No cells were held out, so these forecasts have not been tested: treat them with caution.")
    else:
        sentences.append(f"Tested on cells the fit had not seen, {score.words}")
    return sentences


def shares(budget: ErrorBudget) -> str:
    """The error budget as a sentence."""
    table = budget.table.set_index("term")

    def share(term: str) -> str:
        row = table.loc[term]
        return f"{100 * row['share']:.0f} % [{100 * row['share_low']:.0f}–{100 * row['share_high']:.0f}]"

    spread = float((table["share_high"] - table["share_low"]).max())
    closing = "; the intervals are wide, so the cells do not yet tell the parts apart" if spread > 0.5 else ""
    if budget.note:
        closing += "; another form describes the cells better, so take this split as a guide only"
    return (
        f"Of its error there, Chinchilla's form gives {share('data')} to too little data, {share('capacity')} to too small "
        f"a model and {share('irreducible')} to a floor that neither removes at this recipe and training length{closing}."
    )


def _gain(row: pd.Series, what: str) -> str:
    return (
        f"{what} would lower the error by {100 * row['gain']:.0f} % "
        f"[{100 * row['gain_low']:.0f}–{100 * row['gain_high']:.0f}]"
    )


def significant(value: float) -> str:
    """Three significant digits without an exponent where that is readable: 1,900, 0.131, 8.2·10⁵."""
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if -4 <= exponent <= 4:
        return f"{round(value, 2 - exponent):,.{max(2 - exponent, 0)}f}"
    mantissa, power = f"{value:.1e}".split("e")
    return f"{mantissa}·10{str(int(power)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def versions(column: pd.Series) -> str:
    """The software versions of the rows, from their JSON: "torch 2.13, ray 2.60"."""
    told = []
    for text in sorted(column.dropna().astype(str).unique()):
        try:
            told.append(", ".join(f"{name} {version}" for name, version in json.loads(text).items()))
        except (ValueError, AttributeError):
            told.append(text)
    return "; ".join(told)
