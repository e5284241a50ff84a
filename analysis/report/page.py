"""The report of a study: one self-contained page, with its figures, fit and cells beside it."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from matplotlib.figure import Figure

from analysis.answers.budget import error_budget
from analysis.answers.checks import lack_of_fit
from analysis.points.anchors import Anchor, require_same_evaluation
from analysis.points.limit import Limit
from analysis.report import figures, sections, words
from analysis.report.checklist import checklist
from analysis.report.document import baseline_document, fit_document
from analysis.report.figures.snr import mae_by_snr
from analysis.report.findings import Findings, find
from scaling.errors import UserError
from scaling.files import JSON_STARTS, Location, check_output, json_bytes, output
from scaling.results import measure_of

Picture = dict[str, Any]
PAGE, PAGE_STARTS = "index.html", re.compile(rb"\s*<!doctype", re.IGNORECASE)

_LAW = "The lines are the law fitted without the held-out cells (open markers), with the interval of its curve."
_ANCHORS = (
    "Named below the axis: models from outside this study, with the standard error of their score; no part of the fit."
)

_BASELINES = " Grey: baselines of other kinds on the same spectra, each with the law of its own errors over D."


def write_report(
    rows: pd.DataFrame,
    out: Path,
    *,
    bootstrap: int = 1000,
    seed: int = 0,
    limit: Limit | None = None,
    anchors: Sequence[Anchor] = (),
) -> Path:
    """Fit the law and write `out`/index.html (self-contained), figures/, fit.json and cells.csv.

    Args:
        rows: a table of `scaling.results.Row`.
        out: the folder; created if missing.
        bootstrap: refits a form.
        seed: of the bootstrap.
        limit: the information limit of the test spectra, where it is known.
        anchors: scores of models from elsewhere on the same test spectra; shown, and never fitted.

    Returns:
        The path of the page.

    Raises:
        UserError: if the table is not a results table or mixes evaluations, or the limit or an anchor is of other spectra.
            A table that supports no law is no error: the page then says why.
    """
    findings = find(rows, bootstrap=bootstrap, seed=seed, limit=limit)
    require_same_evaluation(rows, anchors)
    (out / "figures").mkdir(parents=True, exist_ok=True)
    pictures = {
        name: _saved(name, *drawn, out / "figures") for name, drawn in _figures(findings, limit, anchors).items()
    }
    fit = _fit_json(findings) | {"anchors": [asdict(anchor) for anchor in anchors]}
    _write(out / "fit.json", json_bytes(fit))
    _write(out / "cells.csv", findings.table.cells.to_csv(index=False).encode())
    _write(out / PAGE, _render(findings, pictures, limit, anchors, fit.get("beside_chinchilla", "")).encode())
    return out / PAGE


def check_report(out: Path, inputs: Sequence[Location]) -> None:
    """Refuse a folder for a report before anything is computed.

    Raises:
        UserError: It is no folder, it holds other things than an earlier report, or an input is among the report's files.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out}: is there and is no folder: name another folder for the report")
    if not (out / PAGE).is_file() and any(out.iterdir()):
        raise UserError(f"{out}: holds other things and no report ({PAGE}): name a new or an empty folder")
    for name, starts in ((PAGE, PAGE_STARTS), ("fit.json", JSON_STARTS), ("cells.csv", None)):
        check_output(out / name, [place for place in inputs if Path(place).is_file()], starts)


def _fit_json(findings: Findings) -> dict[str, Any]:
    if findings.fitted is None or findings.final is None or findings.answers is None:
        return {"form": None, "status": "not_identified", "message": findings.problem, "parameters": {}}
    score, gains = findings.score, findings.answers.gains.drop(columns="scenario")
    return {
        **fit_document(findings.fitted, cost=findings.answers.cost, tests=findings.backtests),
        "held_out": {"excluded": 0, "inside": 0, "mean_abs_log_error": None}
        if score is None
        else {
            "excluded": len(score.table),
            "inside": score.inside,
            "mean_abs_log_error": score.mean_abs_log_error,
        },
        "all_cells": fit_document(findings.final, gains, findings.answers.cost, findings.backtests),
        "baselines": [baseline_document(each) for each in findings.baselines],
        "checklist": [asdict(line) for line in checklist(findings)],
    }


def _figures(findings: Findings, limit: Limit | None, anchors: Sequence[Anchor]) -> dict[str, tuple[Figure, str]]:
    """Name to figure and caption; those that the table does not support are left out."""
    if not len(findings.cells):
        return {}
    cells, fitted = findings.cells, findings.fitted
    observed = figures.Observed.from_cells(cells)
    path = None if findings.answers is None else findings.answers.path
    told = (f" {_LAW}" if fitted is not None else "") + (f" {_ANCHORS}" if anchors else "")
    drawn: dict[str, tuple[Figure | None, str]] = {}
    if cells["num_spectra"].nunique() > 1:
        drawn["error_against_data"] = (
            figures.error_against_data(observed, fitted, anchors, findings.baselines),
            f"Test error over D.{told}{_BASELINES if findings.baselines else ''}",
        )
    if cells["num_params"].nunique() > 1:
        drawn["error_against_size"] = (
            figures.error_against_size(observed, fitted, anchors),
            f"Test error over N.{told}",
        )
    drawn["error_against_compute"] = (
        figures.error_against_compute(observed, path),
        "Test error over the training compute of the chosen trial; dashed, the lowest error yet measured with that much"
        + (", and in black the compute-optimal path of the law fitted to all cells." if path is not None else "."),
    )
    drawn["mae_by_snr"] = mae_by_snr(cells, limit), "Test error by signal to noise of the spectra."
    drawn["learning_rates"] = (
        figures.learning_rates(findings.rows[findings.rows["family"] == cells["family"].iloc[0]]),
        "Every trial of the search; filled is the one chosen. A star is the optimum of a cell's parabola; a triangle at "
        "the edge says that it lies outside what was tried.",
    )
    drawn |= _law_figures(findings, observed)
    return {name: (figure, caption) for name, (figure, caption) in drawn.items() if figure is not None}


def _law_figures(findings: Findings, observed: figures.Observed) -> dict[str, tuple[Figure | None, str]]:
    """The figures that need a law."""
    fitted, final, answers = findings.fitted, findings.final, findings.answers
    if fitted is None or final is None or answers is None:
        return {}
    drawn: dict[str, tuple[Figure | None, str]] = {}
    if fitted.points.axis == "ND" and answers.S is None:
        caption = "The law over N and D with lines of equal error, and the cells in the same colours"
        caption += "; the black line is the compute-optimal path." if answers.path is not None else "."
        drawn["error_surface"] = figures.error_surface(observed, fitted, answers.path), caption
    if findings.score is not None:
        caption = "Forecast against observation on cells that took no part in the fit; on the line is right."
        drawn["held_out"] = figures.held_out(findings.score, fitted.level, observed.error), caption
    if findings.backtests:
        first = findings.backtests[0]
        caption = (
            f"Forecast against observation of the larger cells by compute, from the {first.fitted} smallest alone."
        )
        drawn["backtest"] = figures.held_out(first.score, final.level, observed.error), caption
    caption = "What the law leaves: a trend here is something the form does not describe."
    drawn["residuals"] = figures.residuals(fitted), caption
    caption = (
        "How much worse the fit gets when one parameter is held elsewhere: within the interval (shaded) the rise stays "
        "below the threshold of the F test. Where the test set's own error is known, the shaded interval holds it too."
    )
    drawn["profiles"] = figures.profiles(fitted, unit=measure_of(findings.rows).unit), caption
    budgets = [error_budget(final, N, D, answers.S) for N, D in sorted({*zip(observed.N, observed.D, strict=True)})]
    shown = [budget for budget in budgets if budget is not None]
    if shown:
        caption = "The parts of the error in every cell, from the law fitted to all cells; points are measured."
        drawn["error_budgets"] = figures.error_budgets(shown, observed, final.level), caption
    return drawn


def _saved(name: str, figure: Figure, caption: str, folder: Path) -> Picture:
    """Save a figure; its SVG as a data URI, for the page."""
    svg = figures.save(figure, folder, name)["svg"]
    return {"caption": caption, "width": figure.get_figwidth(), "data": _data_uri("image/svg+xml", svg.read_bytes())}


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _render(
    findings: Findings, pictures: dict[str, Picture], limit: Limit | None, anchors: Sequence[Anchor], beside: str
) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("analysis.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["dex"] = "{:.3f}".format
    environment.filters["greek"] = words.greek
    environment.filters["short"] = figures.short
    environment.filters["sig"] = words.significant
    cells, fitted, answers, score = findings.cells, findings.fitted, findings.answers, findings.score
    table = findings.table
    return environment.get_template("report.html").render(
        title=", ".join(findings.rows["study"].astype(str).unique()),
        question=words.question(findings.rows),
        answer=words.answer(findings),
        axis=words.axis_meaning(cells) if len(cells) else "",
        run=sections.run_facts(findings),
        anchors=[words.anchor(anchor) for anchor in anchors],
        grid=sections.grid(table.cells),
        problem=findings.problem,
        baselines=sections.baselines(findings),
        forms=sections.forms(fitted),
        parameters=sections.parameters(findings),
        fitted=fitted,
        final=findings.final,
        beside=beside,
        lack=None if fitted is None else lack_of_fit(fitted.law, fitted.points),
        beware=sections.beware(answers),
        trends=[] if findings.trends is None else findings.trends.to_dict("records"),
        warnings=[*table.warnings, *([] if fitted is None else fitted.points.warnings)],
        level=90.0 if fitted is None else 100 * fitted.level,
        pictures=pictures,
        answers=answers,
        budget_rows=[] if answers is None or answers.budget is None else answers.budget.table.to_dict("records"),
        gains=[] if answers is None else sections.gains(answers),
        next_runs=[] if answers is None or answers.next_runs is None else answers.next_runs.head(5).to_dict("records"),
        backtests=findings.backtests,
        score=score,
        score_rows=[] if score is None else score.table.to_dict("records"),
        exclusions=table.exclusions.to_dict("records"),
        edges=table.cells[table.cells["edge_of_search"] != ""].to_dict("records"),
        searched=int((table.cells["learning_rates"] >= 3).sum()),
        rates=findings.rates,
        limit=limit,
        measure=measure_of(findings.rows),
        best_mae=float(cells["test_mae_dex"].min()) if len(cells) else None,
        checklist=checklist(findings),
        shorter=findings.shorter,
        raw=_data_uri("text/csv", findings.given.to_csv(index=False).encode()),
    )


def _write(path: Path, content: bytes) -> None:
    with output(path, starts=None) as temporary:
        temporary.write_bytes(content)
