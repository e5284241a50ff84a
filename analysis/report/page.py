"""The report of a study: one self-contained page, accompanied by its figures, fit and cells."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup, escape

from analysis.answers.checks import lack_of_fit
from analysis.points.anchors import Anchor, require_same_evaluation
from analysis.points.limit import Limit
from analysis.report import figures, sections, words
from analysis.report.checklist import checklist
from analysis.report.document import baseline_document, fit_document
from analysis.report.findings import Findings, find
from analysis.report.headline import UNLIKELY_TREND, Headline, headlines, meanings
from analysis.report.pictures import Picture, save_pictures
from scaling.console import duration
from scaling.errors import UserError
from scaling.files import JSON_STARTS, Location, check_output, json_bytes, output
from scaling.results import measure_of

PAGE, PAGE_STARTS = "index.html", re.compile(rb"\s*<!doctype", re.IGNORECASE)


def write_report(
    rows: pd.DataFrame,
    out: Path,
    *,
    bootstrap: int = 1000,
    seed: int = 0,
    limit: Limit | None = None,
    anchors: Sequence[Anchor] = (),
    curves: str = "",
    progress: Sequence[str] = (),
) -> Path:
    """Fit the law and write `out`/index.html (self-contained), figures/, fit.json and cells.csv.

    Args:
        rows: A table of `scaling.results.Row`.
        out: The folder; created if missing.
        bootstrap: Number of bootstrap refits per form.
        seed: Seed of the bootstrap.
        limit: The information limit of the test spectra, if known.
        anchors: Scores of external models on the same test spectra; shown but never fitted.
        curves: Address of a trial's curve relative to the page, with "{trial}" for the name; "" for no links.
        progress: Status lines of a running study: the page shows them and reloads itself.

    Returns:
        The path of the page.

    Raises:
        UserError: The table is not a results table or mixes evaluations, or the limit or an anchor is for other spectra.
            A table that supports no law is not an error: the page then gives the reason.
    """
    findings = find(rows, bootstrap=bootstrap, seed=seed, limit=limit)
    require_same_evaluation(rows, anchors)
    (out / "figures").mkdir(parents=True, exist_ok=True)
    pictures = save_pictures(
        findings, limit, anchors, out / "figures", curves, ("svg",) if progress else figures.FORMATS
    )
    answer = headlines(findings)
    lines = {"answer": [line.said for line in answer]}
    fit = _fit_json(findings) | lines | {"anchors": [asdict(anchor) for anchor in anchors]}
    _write(out / "fit.json", json_bytes(fit))
    _write(out / "cells.csv", findings.table.cells.to_csv(index=False).encode())
    page = _render(findings, answer, pictures, limit, anchors, fit.get("beside_chinchilla", ""), progress)
    _write(out / PAGE, page.encode())
    return out / PAGE


def check_report(out: Path, inputs: Sequence[Location]) -> None:
    """Check the folder of a report before anything is computed.

    Raises:
        UserError: It is not a folder, contains other things than an earlier report, or an input is among the report's files.
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


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _render(
    findings: Findings,
    answer: list[Headline],
    pictures: dict[str, Picture],
    limit: Limit | None,
    anchors: Sequence[Anchor],
    beside: str,
    progress: Sequence[str],
) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("analysis.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["dex"] = "{:.3f}".format
    environment.filters["duration"] = duration
    environment.filters["greek"] = words.greek
    environment.filters["powers"] = _powers
    environment.filters["short"] = figures.short
    environment.filters["sig"] = words.significant
    cells, fitted, answers, score = findings.cells, findings.fitted, findings.answers, findings.score
    gains, held = None if answers is None else answers.gains, None if score is None else score.table
    table = findings.table
    return environment.get_template("report.html").render(
        title=", ".join(findings.rows["study"].astype(str).unique()),
        question=words.question(findings.rows),
        lowest=words.lowest(cells) if len(cells) else "",
        headlines=answer,
        meanings=meanings(findings),
        progress=progress,
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
        beware=sections.beware(gains),
        score_beware=sections.beware(held),
        trends=[] if findings.trends is None else findings.trends.to_dict("records"),
        warnings=[*table.warnings, *([] if fitted is None else fitted.points.warnings)],
        level=90.0 if fitted is None else 100 * fitted.level,
        pictures=pictures,
        answers=answers,
        shares=""
        if answers is None or answers.budget is None or findings.final is None
        else words.shares(answers.budget, findings.final),
        unlikely=UNLIKELY_TREND,
        budget_rows=[] if answers is None or answers.budget is None else answers.budget.table.to_dict("records"),
        gains=sections.forecasts(gains),
        next_runs=[] if answers is None or answers.next_runs is None else answers.next_runs.head(5).to_dict("records"),
        backtests=findings.backtests,
        score=score,
        score_rows=sections.forecasts(held),
        exclusions=table.exclusions.to_dict("records"),
        pruned=int((findings.rows["status"] == "pruned").sum()),
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


def _powers(text: str) -> Markup:
    """Format exponents in a text as superscripts."""
    return Markup(re.sub(r"\^(?:\(([^)]*)\)|([^\s/+)(]+))", r"<sup>\1\2</sup>", str(escape(text))))


def _write(path: Path, content: bytes) -> None:
    with output(path, starts=None) as temporary:
        temporary.write_bytes(content)
