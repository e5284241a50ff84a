"""Why the curve stops: one statement with its evidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from analysis.answers.budget import ErrorBudget
from analysis.points.limit import Limit

_CLOSE = 25.0  # per cent above the information limit up to which a floor counts as the limit
Cause = Literal["undecided", "irreducible", "information limit", "capacity", "data", "repetition"]
Origin = Literal["spectra", "training", "unknown", "leak"]

_NAMES = {
    "irreducible": "a floor that neither more data nor a larger model lowers",
    "capacity": "too small a model",
    "data": "too little data",
    "repetition": "seeing the same spectra again",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """The main cause of the error at the largest cell.

    Attributes:
        cause: The largest part of the error; "undecided" if its interval overlaps another's.
        words: The statement, with its evidence.
        remedy: What would lower a floor that is the largest part, or would show it; "" for other causes.
    """

    cause: Cause
    words: str
    remedy: str = ""


def why_it_stops(
    budget: ErrorBudget, limit: Limit | None = None, shorter: dict[str, Any] | None = None, unit: str = "dex"
) -> Stop:
    """Name the largest part of the error at a cell, if the intervals of the shares separate it from the others.

    A floor whose interval contains the information limit of the test spectra, and nothing far above it, is that limit: no model
    can do better on them. Training length is not part of the law, but if a study has results of shorter budgets, the gain of
    the last doubling is stated.

    Args:
        budget: The error's parts at the largest cell.
        limit: The information limit of the test spectra, if known.
        shorter: Result of `shorter_budgets`, if the study has branches.
        unit: Unit of the error.
    """
    table = budget.table.set_index("term")
    first = table["share"].idxmax()
    second = table["share_high"].drop(first).idxmax()
    top, other = table.loc[first], table.loc[second]
    cause: Cause = first
    if other["share_high"] >= top["share_low"]:
        cause = "undecided"
        names = _NAMES | {"irreducible": "the floor"}
        words = (
            f"Not decided: {names[first]} ({_percent(top)} of the error) and {names[second]} ({_percent(other)}) overlap. "
            "More cells or seeds would separate them."
        )
    else:
        words = f"The curve stops at {_NAMES[first]}: {_percent(top)} of the error at the largest cell."
    origin, beside = _origin(table.loc["irreducible"], limit, unit)
    longer, pays = _training(shorter)
    remedy = _remedy(origin, pays) if cause == "irreducible" else ""
    if cause == "irreducible" and origin == "spectra":
        cause = "information limit"
    return Stop(cause=cause, words=words + beside + longer, remedy=remedy)


def _origin(floor: Any, limit: Limit | None, unit: str) -> tuple[Origin, str]:
    """What sets the floor, and its distance from the information limit in words."""
    if limit is None:
        return "unknown", ""
    words = f" The information limit of the test spectra is {limit.mae_dex:.3f} {unit}, "
    low, high = (100 * (floor[end] / limit.mae_dex - 1) for end in ("low", "high"))
    if low > 0:
        words += f"and the floor lies {low:.0f} to {high:.0f} % above it: the spectra allow less, so recipe or training length may set it."
        return "training", words
    if high < 0:
        return (
            "leak",
            f"{words}and the floor lies below it: test spectra have leaked into training, or the limit is not of these spectra.",
        )
    if high <= _CLOSE:
        return (
            "spectra",
            f"{words}which the floor's interval holds: no model does better on these spectra than the floor.",
        )
    words += (
        f"which the floor's interval holds, as it does values up to {high:.0f} % above it: whether the spectra or the "
        "training set the floor is not decided."
    )
    return "unknown", words


def _remedy(origin: Origin, pays: bool | None) -> str:
    if origin == "spectra":
        return "Spectra of a higher signal to noise: no model does better on these."
    if origin == "leak":
        return ""
    if pays is False:
        return "Another recipe: neither more data nor a larger model nor longer training lowers this floor."
    if origin == "training":
        return "A longer budget (Recipe.budget) or another recipe: the spectra allow less than the floor."
    return "A longer budget (Recipe.budget): it shows whether training sets the floor."


def _training(shorter: dict[str, Any] | None) -> tuple[str, bool | None]:
    """What the longest of the shorter budgets implies for longer training, and whether that pays, if known."""
    lines = [] if shorter is None else [line for line in shorter["lines"] if line["share"] < 1]
    if not lines:
        return "", None
    last = lines[-1]
    fall = 100 * last["above"] / (1 + last["above"])
    words = (
        f" Training {1 / last['share']:.3g} times as long, up to the whole budget, lowered the error by {fall:.1f} %"
    )
    if last["sem"] is not None:
        words += f" ± {100 * last['sem']:.1f} %"
        if abs(last["above"]) < 2 * last["sem"]:
            return f"{words}: no more than chance, so training length does not stop it.", False
    return f"{words}: training longer {'still pays' if fall > 0 else 'does not pay'}.", fall > 0


def _percent(row: Any) -> str:
    low, high = (100 * np.clip(row[name], 0, 1) for name in ("share_low", "share_high"))
    return f"{low:.0f} to {high:.0f} %"
