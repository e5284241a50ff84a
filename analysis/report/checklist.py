"""Checklist of what a trustworthy scaling study must state, filled from its rows and fits or marked as missing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.laws import LAWS
from analysis.points.trials import error_sem
from analysis.report import words
from analysis.report.findings import Findings
from scaling.results import measure_of

NOT_RECORDED = "not recorded"

_OBJECTIVES = {
    "lsq": "weighted squares of the residuals of log error",
    "linear": "squares of the plain residuals",
    "huber": "Huber's function of the residuals of log error",
    "l1": "absolute residuals of log error",
}


@dataclass(frozen=True, slots=True)
class Line:
    """One statement of the checklist.

    Attributes:
        question: What a reader must know.
        answer: The study's answer, or why it has none.
        stated: Whether the study answers it.
    """

    question: str
    answer: str
    stated: bool = True


def checklist(findings: Findings) -> list[Line]:
    """All lines, in the order of a paper: what was measured, how it was fitted, what was excluded."""
    rows, cells = findings.rows, findings.cells
    if not len(cells):
        return [Line("Any law at all", findings.problem, stated=False)]
    return [
        _parameters(cells),
        _data(cells),
        _flops(findings),
        _tuning(findings),
        _seeds(findings),
        _test_set(cells),
        _exclusions(findings),
        *_fitting(findings),
        _scored(findings),
        _forms(findings),
        _code(rows),
        Line("Raw table", f"all {len(rows)} trials are attached to this page, failed ones included"),
    ]


def _span(values: pd.Series, style: str = "{:,.0f}") -> str:
    low, high = style.format(values.min()), style.format(values.max())
    return low if low == high else f"{low} to {high}"


def _missing(question: str, why: str = "") -> Line:
    return Line(question, f"{NOT_RECORDED}{f': {why}' if why else ''}", stated=False)


def _parameters(cells: pd.DataFrame) -> Line:
    question = "What N counts"
    total = cells["num_params_total"] / cells["num_params"]
    answer = f"the parameters that reach the loss: {_span(cells['num_params'])}"
    if not (cells["num_params_total"] > 0).all():
        return Line(question, answer)
    more = float(total.max()) - 1
    others = f"with those that do not, N would be up to {100 * more:.1f} % larger" if more > 0 else "no others exist"
    return Line(question, f"{answer}; {others}")


def _data(cells: pd.DataFrame) -> Line:
    seen = cells["samples_seen"]
    stated = bool((seen > 0).all())
    answer = f"D counts distinct training spectra: {_span(cells['num_spectra'])}; samples seen in training: "
    answer += f"{_span(seen)} ({_span(seen / cells['num_spectra'], '{:.3g}')} epochs)" if stated else NOT_RECORDED
    return Line("Unique data against samples seen", f"{answer}. {words.axis_meaning(cells)}", stated=stated)


def _flops(findings: Findings) -> Line:
    cells, question = findings.cells, "FLOP formula"
    each = cells["train_flops"] / (cells["num_params"] * cells["samples_seen"])
    if not (np.isfinite(each) & (each > 0)).all():
        return _missing(question)
    answer = (
        f"counted exactly from the architecture, forward and backward: {_span(each, '{:.3g}')} FLOPs for each parameter "
        "and spectrum seen"
    )
    return Line(question, answer)


def _tuning(findings: Findings) -> Line:
    cells, question = findings.cells, "Tuning at each size"
    edges = int((cells["edge_of_search"] != "").sum())
    searched = int((cells["learning_rates"] >= 3).sum())
    answer = f"{searched} of {len(cells)} cells tried three learning rates or more, and the best is chosen by validation error"
    if not searched:
        return Line(question, f"{answer}, so no optimum is bracketed", stated=False)
    return Line(question, f"{answer}; in {edges} of these it lies at the edge of the search")


def _seeds(findings: Findings) -> Line:
    cells, question = findings.cells, "Seeds and noise"
    runs = cells.groupby(["num_params", "num_spectra"])["seed"].nunique()
    if findings.final is None:
        return Line(question, f"{_span(runs)} seeds at each N and D")
    if runs.max() == 1:
        return Line(question, "one seed a cell: the scatter between seeds is not known", stated=False)
    return Line(question, f"{_span(runs)} seeds at each N and D. {findings.final.scatter.words}")


def _test_set(cells: pd.DataFrame) -> Line:
    question = "Test set and its error"
    size, error = cells["num_test"], error_sem(cells) / cells[measure_of(cells).test]
    draws = int(cells["eval_draws"].max())
    if not (size > 0).all() or error.isna().all():
        return _missing(question)
    drawn = "one noise draw" if draws == 1 else f"{draws} noise draws"
    return Line(
        question,
        f"{_span(size)} spectra with {drawn}, the same for all cells; a score's standard error is "
        f"{100 * error.median():.1f} %, common to all of them: it widens the intervals of E, A and B",
    )


def _exclusions(findings: Findings) -> Line:
    question = "Exclusions, with both fits"
    lost = len(findings.table.exclusions)
    answer = f"{lost} trials diverged, failed or left no metric" if lost else "no trial was excluded"
    if findings.fitted is None or findings.final is None:
        return Line(question, answer)
    if not findings.held:
        return Line(question, f"{answer}; no cell was held out of the fit")
    return Line(
        question,
        f"{answer}; {findings.held} cells were held out. Without them {words.parameters(findings.fitted)}. "
        f"With them {words.parameters(findings.final)}.",
    )


def _fitting(findings: Findings) -> list[Line]:
    """Objective, optimiser and intervals of the fit."""
    fitted = findings.fitted
    if fitted is None:
        return [_missing(question, "there is no law") for question in ("Objective", "Optimiser", "Intervals")]
    law, unfinished = fitted.law, fitted.bootstrap.unfinished.get(fitted.best, 0)
    delta = f", δ = {law.delta:g}" if law.objective == "huber" else ", which has no δ"
    replicates = len(fitted.bootstrap.chosen)
    method = {
        "profile": "profile likelihood with the F threshold for parameters and forecasts, mixed over the forms by "
        f"their backtests for forecasts; {replicates} refits to resampled cells for shares and the optimal path",
        "bootstrap": f"{replicates} refits to resampled cells",
    }[fitted.interval_method]
    return [
        Line("Objective and δ", f"{law.objective}: {_OBJECTIVES[law.objective]}{delta}; minimum {law.value:.6g}"),
        Line(
            "Optimiser and convergence",
            f"Levenberg–Marquardt from a grid over all exponents, deterministic; {law.form}: {law.status.replace('_', ' ')} "
            f"({law.message}); {unfinished} of {replicates} refits stopped before their minimum",
        ),
        Line("Interval method", f"{100 * fitted.level:g} % intervals by {method}; seed {fitted.seed}"),
    ]


def _scored(findings: Findings) -> Line:
    question = "Score on held-out cells"
    if findings.score is None:
        return _missing(question, "no cell was held out" if findings.fitted is not None else "there is no law")
    return Line(question, findings.score.words)


def _forms(findings: Findings) -> Line:
    question, fitted = "Competing forms", findings.fitted
    if fitted is None:
        return _missing(question, "there is no law")
    weights = ", ".join(f"{form} {weight:.2f}" for form, weight in fitted.weights.items())
    size = len(LAWS[fitted.best].parameters)
    return Line(
        question, f"{len(fitted.fits)} forms, Akaike weights: {weights}; selected: {fitted.best}, {size} parameters"
    )


def _code(rows: pd.DataFrame) -> Line:
    question = "Code version"
    commits = sorted({str(commit) for commit in rows["code_commit"].dropna()} - {""})
    if not commits:
        return _missing(question)
    versions = words.versions(rows["versions"])
    return Line(question, f"{', '.join(commits)}{f' with {versions}' if versions else ''}")
