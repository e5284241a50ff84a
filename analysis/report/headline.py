"""The answer in four lines, and a one-sentence summary of each section of the page."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.answers.checks import UNLIKELY, lack_of_fit
from analysis.answers.next_runs import run_hours
from analysis.report import sections, words
from analysis.report.checklist import checklist
from analysis.report.figures.style import GREEK, short
from analysis.report.findings import Findings
from scaling.console import duration
from scaling.results import measure_of

LAW = "The law"
UNLIKELY_TREND = 0.01
"""p-value below which residuals are reported to depend on an axis."""


@dataclass(frozen=True, slots=True)
class Headline:
    """One line of the answer: its topic, the line, and remarks on it."""

    title: str
    words: str
    detail: str = ""

    @property
    def said(self) -> str:
        """The line for a terminal; a law includes its intervals."""
        end = "" if self.title.endswith("?") else ":"
        intervals = f"; {self.detail}" if self.title == LAW and self.detail else ""
        return f"{self.title}{end} {self.words}{intervals}"


def headlines(findings: Findings) -> list[Headline]:
    """The law, its score on held-out cells, why the curve stops, and what to run next: one line each."""
    if findings.final is None or findings.answers is None:
        best = [Headline("The best so far", f"{words.lowest(findings.cells)}.")] if len(findings.cells) else []
        return [*best, Headline(LAW, f"There is no law of error over N and D here: {findings.problem}.")]
    return [_law(findings), _score(findings), _stop(findings), _next(findings)]


def _law(findings: Findings) -> Headline:
    final, answers = findings.final, findings.answers
    assert final is not None
    assert answers is not None
    formula = words.greek(final.law.law.formula).replace("L = ", f"{measure_of(findings.rows).name} = ", 1)
    intervals = final.intervals[final.best]
    listed = ", ".join(f"{GREEK.get(name, name)} {words.bounds(intervals.get(name))}" for name in final.law.parameters)
    beware = "".join(f" Beware: {flag}." for flag in sections.beware(answers.gains))
    detail = f"{final.best}, fitted to all cells; {100 * final.level:g} % intervals in this form: {listed}.{beware}"
    return Headline(LAW, formula, detail)


def _score(findings: Findings) -> Headline:
    title = "Was its forecast right?"
    if findings.score is not None:
        score, level = findings.score, 100 * (findings.fitted.level if findings.fitted else 0.9)
        line = f"{score.inside} of {len(score.table)} held-out runs lie inside their {level:g} % intervals"
        miss = f"the mean miss is {100 * score.mean_abs_log_error:.0f} %"
        detail = [_split(score.words)[1]]
        if findings.final is not None and findings.fitted is not None and findings.final.best != findings.fitted.best:
            detail.append(f"The forecast is of the fit without them, whose form is {findings.fitted.best}.")
        detail += [test.brief for test in findings.backtests[:1]]
        return Headline(title, f"{line}; {miss}.", " ".join(filter(None, detail)))
    if findings.backtests:
        return Headline(title, *_split(f"No cells were held out. {findings.backtests[0].words}"))
    return Headline(title, "Not tested: no cells were held out, so treat every forecast with caution.")


def _stop(findings: Findings) -> Headline:
    title, answers = "Why does the curve stop?", findings.answers
    assert answers is not None
    if answers.stop is None:
        return Headline(title, "The selected law cannot be split into parts here.")
    return Headline(title, *_split(answers.stop.words))


def _next(findings: Findings) -> Headline:
    """What lowers the floor, if that is the cause; then more data or a larger model, whichever gains more, with its cost."""
    title, answers = "What to run next?", findings.answers
    assert answers is not None
    gains = answers.gains[answers.gains["scenario"].str.endswith(("data", "model"))]
    known = gains[~gains["refused"].astype(bool)].sort_values("gain", ascending=False)
    if not len(known):
        reasons = "; ".join(dict.fromkeys(flag for flags in gains["flags"] for flag in flags))
        return Headline(title, f"More cells: the law cannot be trusted beyond these ({reasons}).")
    first = known.iloc[0]
    place = f"N = {short(first['N'])}, D = {short(first['D'])}"
    hours, detail = run_hours(findings.cells), []
    if hours is not None:
        cost = float(hours(np.array([first["N"]]), np.array([first["D"]]))[0])
        detail.append(f"A run of {place} takes about {duration(3600 * cost)} of one device.")
    detail += [_gain(row) for _, row in known.iloc[1:].iterrows()]
    remedy = f"{answers.stop.remedy} " if answers.stop is not None and answers.stop.remedy else ""
    return Headline(title, remedy + _gain(first), " ".join(detail))


def _gain(row: pd.Series) -> str:
    more, (ends, best) = words.more(row), words.fall(row)
    return f"{more[0].upper()}{more[1:]}: {ends} ({best})."


def _split(text: str) -> tuple[str, str]:
    """The first sentence and the rest."""
    first, _, rest = text.partition(". ")
    return (f"{first}.", rest) if rest else (text, "")


def meanings(findings: Findings) -> dict[str, str]:
    """Maps each section to a sentence that explains its statistics."""
    found = {
        "rates": _rates(findings),
        "exclusions": f"{len(findings.table.exclusions)} trials were left out, each with its reason."
        if len(findings.table.exclusions)
        else "Nothing was left out.",
        "checklist": _checklist(findings),
    }
    fitted = findings.fitted
    if fitted is None:
        return found
    lack = lack_of_fit(fitted.law, fitted.points)
    found["law"] = f"{fitted.best}{', without the held-out cells' if findings.held else ''}. " + (
        "Whether it fits cannot be tested: too few cells have two seeds."
        if lack is None
        else f"The cells deviate from it by more than seeds explain (p = {words.significant(lack.p)}): plan with care."
        if lack.p < UNLIKELY
        else f"The cells deviate from it by no more than seeds explain (p = {words.significant(lack.p)})."
    )
    open_ends = [
        GREEK.get(name, name)
        for name, ends in fitted.intervals[fitted.best].items()
        if ends[0] == 0 or not np.all(np.isfinite(ends)) or (name == "E" and ends[0] <= 1.001 * fitted.points.floor)
    ]
    found["profiles"] = (
        f"The cells do not determine {' and '.join(open_ends)}: quote intervals only."
        if open_ends
        else "Every parameter of the law is determined: each interval has two ends."
    )
    mixed = len(fitted.extrapolation.mixed)
    found["forms"] = (
        f"{fitted.best} fits best for its size; "
        + (f"forecasts mix {mixed} forms" if mixed > 1 else "forecasts rest on one form")
        + (
            ", by how well each forecast the larger cells from the smaller."
            if fitted.extrapolation.errors
            else ", by AICc."
        )
    )
    trends = [] if findings.trends is None else list(findings.trends.query("p < @UNLIKELY_TREND")["axis"])
    smallest = float("nan") if findings.trends is None else float(findings.trends["p"].min())
    found["residuals"] = (
        f"The errors still depend on {' and '.join(trends)} in a way the law misses: do not extrapolate along it."
        if trends
        else f"No trend in what the law misses is significant (smallest p = {words.significant(smallest)})."
    )
    return found


def _rates(findings: Findings) -> str:
    cells = findings.table.cells
    searched, edges = int((cells["learning_rates"] >= 3).sum()), int((cells["edge_of_search"] != "").sum())
    if not searched:
        return "No cell tried three learning rates, so errors may be higher than they need to be."
    if edges:
        return f"In {edges} of {searched} searched cells a better learning rate may lie outside: their errors may be too high."
    return f"In all {searched} searched cells the best learning rate lies inside what was tried."


def _checklist(findings: Findings) -> str:
    lines = checklist(findings)
    missing = [line.question.lower() for line in lines if not line.stated]
    stated = f"{len(lines) - len(missing)} of {len(lines)} points are stated, which does not say that they are good"
    return f"{stated}; missing: {', '.join(missing)}." if missing else f"{stated}."
