"""The report of a study: one self-contained page, with its figures, fit and cells beside it."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis import figures, words
from analysis.compare import Comparison, HeldOut, compare, held_out_score, lack_of_fit
from analysis.document import fit_document, write_json
from analysis.frontier import error_budget, what_would_it_buy
from analysis.laws import LAWS
from analysis.table import CellTable, best_trials, law_cells, points_from_cells
from scaling.errors import UserError

_GREEK = {"alpha": "α", "beta": "β", "gamma": "γ"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What the page tells.

    Attributes:
        cells: the best trial of each cell of the law's family.
        fitted: the fit to the cells that were not held out, or None with `problem` saying why.
        final: the fit to all cells, or None.
        score: the score of `fitted` on the held-out cells, or None without such cells.
        problem: why there is no law, or "".
    """

    cells: pd.DataFrame
    fitted: Comparison | None
    final: Comparison | None
    score: HeldOut | None
    problem: str


def write_report(rows: pd.DataFrame, out: Path, *, bootstrap: int = 400, seed: int = 0) -> Path:
    """Fit the law and write `out`/index.html (self-contained), figures/, fit.json and cells.csv.

    Args:
        rows: a table of `scaling.study.rows.Row`.
        out: the folder; created if missing.
        bootstrap: refits a form.
        seed: of the bootstrap.

    Returns:
        The path of the page.

    Raises:
        UserError: if the table is not a results table or mixes evaluations. A table that supports no law is no
            error: the page then says why.
    """
    table = best_trials(rows)
    findings = find(table, bootstrap=bootstrap, seed=seed)
    (out / "figures").mkdir(parents=True, exist_ok=True)
    pictures = _save_figures(findings, rows, out / "figures")
    write_json(_fit_json(findings), out / "fit.json")
    _write(out / "cells.csv", table.cells.to_csv(index=False))
    page = out / "index.html"
    _write(page, _render(findings, table, rows, pictures))
    return page


def find(table: CellTable, *, bootstrap: int = 400, seed: int = 0) -> Findings:
    """Fit without the held-out cells, score the forecast of those, and fit again to all."""
    try:
        cells = law_cells(table.cells)
    except UserError as error:
        return Findings(cells=table.cells.iloc[:0], fitted=None, final=None, score=None, problem=_reason(error))
    held = cells["held_out"].astype(bool)
    try:
        fitted = compare(points_from_cells(cells[~held]), replicates=bootstrap, seed=seed)
        final = compare(points_from_cells(cells), replicates=bootstrap, seed=seed) if held.any() else fitted
    except UserError as error:
        return Findings(cells=cells, fitted=None, final=None, score=None, problem=_reason(error))
    score = held_out_score(fitted, cells[held]) if held.any() else None
    return Findings(cells=cells, fitted=fitted, final=final, score=score, problem="")


def _reason(error: UserError) -> str:
    return str(error).removeprefix("table: ")


def _fit_json(findings: Findings) -> dict[str, Any]:
    if findings.fitted is None or findings.final is None:
        return {"form": None, "status": "not_identified", "message": findings.problem, "parameters": {}}
    score, largest = findings.score, findings.cells[["num_params", "num_spectra"]].max()
    forecasts = what_would_it_buy(findings.final, *largest).drop(columns="scenario")
    return {
        **fit_document(findings.fitted),
        "held_out": {"excluded": 0, "inside": 0, "mean_abs_log_error": None}
        if score is None
        else {
            "excluded": len(score.table),
            "inside": score.inside,
            "mean_abs_log_error": score.mean_abs_log_error,
        },
        "all_cells": fit_document(findings.final, forecasts),
    }


def _save_figures(findings: Findings, rows: pd.DataFrame, folder: Path) -> list[dict[str, str]]:
    """Draw, save and return the figures as {name, caption, data}: `data` is the SVG as a data URI."""
    cells, fitted = findings.cells, findings.fitted
    if not len(cells):
        return []
    law = " The lines are the law fitted without the held-out cells (open markers), with the band of its curve."
    law = law if fitted is not None else ""
    drawn: list[tuple[str, Figure | None, str]] = []
    if cells["num_spectra"].nunique() > 1:
        drawn.append(("error_against_data", figures.error_against_data(cells, fitted), f"Test error by spectra.{law}"))
    if cells["num_params"].nunique() > 1:
        drawn.append(
            ("error_against_size", figures.error_against_size(cells, fitted), f"Test error by model size.{law}")
        )
    if fitted is not None:
        if findings.score is not None:
            caption = "Forecast against observation on cells that took no part in the fit; on the line is right."
            observed = figures.held_out(findings.score, fitted.bootstrap.level, figures.error_label(cells))
            drawn.append(("held_out", observed, caption))
        caption = "What the law leaves, against both axes: a trend here is something the form does not describe."
        drawn.append(("residuals", figures.residuals(fitted), caption))
    family = rows[rows["family"] == cells["family"].iloc[0]]
    caption = "Every trial of the search; filled is the one chosen, a cross is a trial that diverged or failed."
    drawn.append(("learning_rates", figures.learning_rates(family), caption))
    pictures = []
    for name, figure, caption in drawn:
        if figure is not None:
            svg, _ = figures.save(figure, folder, name)
            data = base64.b64encode(svg.read_bytes()).decode()
            pictures.append({"name": name, "caption": caption, "data": f"data:image/svg+xml;base64,{data}"})
    return pictures


def _render(findings: Findings, table: CellTable, rows: pd.DataFrame, pictures: list[dict[str, str]]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("analysis"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "sig": words.significant,
        "dex": lambda value: f"{value:.3f}",
        "short": figures.short,
    }
    cells, final = findings.cells, findings.final
    budget, gains = None, []
    if final is not None:
        n, d = float(cells["num_params"].max()), float(cells["num_spectra"].max())
        budget = error_budget(final, n, d)
        gains = what_would_it_buy(final, n, d).to_dict("records")
    return environment.get_template("report.html").render(
        title=", ".join(rows["study"].astype(str).unique()),
        question=words.question(rows),
        answer=words.answer(cells, final, findings.score, findings.problem) if len(cells) else [findings.problem],
        axis=words.axis_meaning(cells) if len(cells) else "",
        run=_run_facts(table, rows),
        grid=_grid(table.cells),
        problem=findings.problem,
        laws=_law_rows(findings),
        lack=None if findings.fitted is None else lack_of_fit(findings.fitted),
        warnings=[] if findings.fitted is None else findings.fitted.points.warnings,
        level=90 if final is None else 100 * final.bootstrap.level,
        pictures={picture["name"]: picture for picture in pictures},
        budget=budget,
        budget_rows=[] if budget is None else budget.table.to_dict("records"),
        gains=gains,
        score=findings.score,
        score_rows=[] if findings.score is None else findings.score.table.to_dict("records"),
        exclusions=table.exclusions.to_dict("records"),
        edges=table.cells[table.cells["edge_of_search"] != ""].to_dict("records"),
        searched=int((table.cells["learning_rates"] >= 3).sum()),
        sem=float(cells["test_mae_sem_dex"].median()) if cells["test_mae_sem_dex"].notna().any() else None,
    )


def _run_facts(table: CellTable, rows: pd.DataFrame) -> dict[str, Any]:
    def listed(column: str, style: str = "{}") -> str:
        return ", ".join(style.format(value) for value in sorted(rows[column].dropna().unique()))

    return {
        "trials": len(rows),
        "finished": int((rows["status"] == "done").sum()),
        "cells": len(table.cells),
        "held": int(table.cells["held_out"].astype(bool).sum()),
        "seeds": int(table.cells["seed"].nunique()),
        "spectra": f"{rows['num_spectra'].min():,} to {rows['num_spectra'].max():,}",
        "num_test": listed("num_test", "{:,}"),
        "device": listed("device"),
        "hours": f"{rows['device_seconds'].sum(skipna=True) / 3600:.2g}",
        "commit": listed("code_commit"),
        "versions": words.versions(rows["versions"]),
        "eval_pin": listed("eval_pin"),
        "precision": listed("precision"),
        "z": listed("label_std", "{:.4g}"),
    }


def _grid(cells: pd.DataFrame) -> dict[str, Any]:
    """Best test MAE by (family, N) and D, averaged over seeds: {columns: [D], rows: [{family, rung, N, values}]}."""
    columns = sorted(cells["num_spectra"].unique())
    lines = []
    for (family, N, rung), group in cells.groupby(["family", "num_params", "rung"], sort=True):
        values: list[dict[str, Any] | None] = []
        for D in columns:
            here = group[group["num_spectra"] == D]
            mean, spread = here["test_mae_dex"].mean(), here["test_mae_dex"].std(ddof=1) if len(here) > 1 else None
            held = bool(here["held_out"].any())
            values.append({"mean": mean, "spread": spread, "seeds": len(here), "held": held} if len(here) else None)
        lines.append({"family": family, "rung": rung, "N": int(N), "values": values})
    lines.sort(key=lambda line: (line["family"] != "specvit", line["family"], line["N"]))
    return {"columns": [int(D) for D in columns], "rows": lines, "families": cells["family"].nunique()}


def _law_rows(findings: Findings) -> list[dict[str, Any]]:
    """The fits as rows of a table: both forms without the held-out cells, then the best form on all cells."""
    if findings.fitted is None or findings.final is None:
        return []
    shown = [(findings.fitted, form, "") for form in findings.fitted.fits]
    if findings.final is not findings.fitted:
        shown.append((findings.final, findings.final.best, ", all cells"))
    names = list(dict.fromkeys(name for law in LAWS.values() for name in law.parameters))
    lines = []
    for comparison, form, which in shown:
        fitted = comparison.fits[form]
        intervals = comparison.bootstrap.parameter_intervals(form) if form in comparison.bootstrap.draws else {}
        known = {name: value for name, value in fitted.parameters.items() if np.isfinite(value)}
        lines.append(
            {
                "form": form + which,
                "formula": LAWS[form].formula,
                "best": form == comparison.best,
                "status": fitted.status.replace("_", " "),
                "message": fitted.message,
                "weight": comparison.weights[form],
                "points": len(comparison.points),
                "parameters": [(_GREEK.get(name, name), known.get(name), intervals.get(name)) for name in names],
            }
        )
    return lines


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
