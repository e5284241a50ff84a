"""The tables of the report, as plain rows for its template."""

from __future__ import annotations

from typing import Any

import pandas as pd

from analysis.intervals.compare import Comparison
from analysis.laws import LAWS
from analysis.report import words
from analysis.report.figures.style import GREEK, label_name
from analysis.report.findings import Findings
from scaling.results import measure_of


def run_facts(findings: Findings) -> dict[str, Any]:
    """Counts of what was run."""
    family = findings.cells["family"].unique()
    rows = findings.rows[findings.rows["family"].isin(family)] if len(family) else findings.rows
    cells = findings.cells if len(family) else findings.table.cells

    def listed(column: str, style: str = "{}") -> str:
        return ", ".join(style.format(value) for value in sorted(rows[column].dropna().unique()))

    return {
        "trials": len(rows),
        "finished": int((rows["status"] == "done").sum()),
        "cells": len(cells),
        "held": int(cells["held_out"].astype(bool).sum()),
        "seeds": int(cells["seed"].nunique()),
        "spectra": f"{rows['num_spectra'].min():,} to {rows['num_spectra'].max():,}",
        "num_test": listed("num_test", "{:,}"),
        "draws": listed("eval_draws"),
        "label": label_name(rows),
        "device": listed("device"),
        "hours": f"{rows['device_seconds'].sum(skipna=True) / 3600:.2g}",
        "eval_pin": listed("eval_pin"),
        "precision": listed("precision"),
        "z": listed("label_std", "{:.4g}"),
    }


def grid(cells: pd.DataFrame) -> dict[str, Any]:
    """Best test error by (family, N) and D, averaged over seeds: {columns: [D], rows: [{family, rung, N, values}]}.

    A baseline is one line, whatever its numbers of parameters; its N is None.
    """
    columns, error = sorted(cells["num_spectra"].unique()), measure_of(cells).test
    lines = []
    sizes = cells["num_params"].where(cells["rung"] != cells["family"], 0)
    for (family, N, rung), group in cells.groupby(["family", sizes, "rung"], sort=True):
        values: list[dict[str, Any] | None] = []
        for D in columns:
            here = group[group["num_spectra"] == D]
            mean, spread = here[error].mean(), here[error].std(ddof=1) if len(here) > 1 else None
            held = bool(here["held_out"].any())
            values.append({"mean": mean, "spread": spread, "seeds": len(here), "held": held} if len(here) else None)
        lines.append({"family": family, "rung": rung, "N": int(N) or None, "values": values})
    lines.sort(key=lambda line: (line["family"] != "specvit", line["family"], line["N"] or 0))
    return {"columns": [int(D) for D in columns], "rows": lines, "families": cells["family"].nunique()}


def baselines(findings: Findings) -> list[dict[str, Any]]:
    """The data law of each baseline with intervals, and where the study's models become better."""
    measure, lines = measure_of(findings.rows), []
    for each in findings.baselines:
        line: dict[str, Any] = {"family": each.family, "problem": each.problem, "form": "", "parameters": ""}
        last = each.cells[each.cells["num_spectra"] == each.cells["num_spectra"].max()]
        line["error"] = measure.value(float(last[measure.test].mean()))
        if each.law is not None:
            found, intervals = each.law.law, each.law.law_intervals
            line["form"] = found.law.formula
            line["parameters"] = "; ".join(
                f"{GREEK.get(name, name)} = {words.significant(value)} ({words.bounds(intervals.get(name))})"
                for name, value in found.parameters.items()
            )
        line["words"] = "" if each.crossing is None else each.crossing.words
        lines.append(line)
    return lines


def forms(comparison: Comparison | None) -> list[dict[str, Any]]:
    """All compared forms: AICc above the lowest, weights, error in the backtests and outcome."""
    if comparison is None:
        return []
    lowest, found = min(comparison.aicc.values()), comparison.extrapolation
    lines = []
    for form, fitted in comparison.fits.items():
        lines.append(
            {
                "form": form,
                "formula": LAWS[form].formula,
                "best": form == comparison.best,
                "parameters": len(LAWS[form].parameters),
                "usable": fitted.usable and comparison.aicc[form] < float("inf"),
                "above": comparison.aicc[form] - lowest,
                "weight": comparison.weights[form],
                "error": None if form not in found.errors else f"{100 * found.errors[form]:.1f} %",
                "forecasts": found.weights.get(form, 0.0),
                "status": fitted.status.replace("_", " "),
                "message": "" if fitted.status == "converged" else fitted.message,
            }
        )
    return sorted(lines, key=lambda line: line["above"])


def parameters(findings: Findings) -> list[dict[str, Any]]:
    """The selected form's parameters with their intervals, without and with the held-out cells."""
    if findings.fitted is None or findings.final is None:
        return []
    law = findings.fitted.law.law
    lines = []
    for name, meaning in law.meaning.items():
        line: dict[str, Any] = {"name": GREEK.get(name, name), "meaning": meaning}
        for which, comparison in (("fitted", findings.fitted), ("final", findings.final)):
            value = comparison.fits[law.name].parameters[name]
            interval = comparison.intervals.get(law.name, {}).get(name)
            line[which] = {"value": words.significant(value), "interval": words.bounds(interval)}
        lines.append(line)
    return lines


def beware(table: pd.DataFrame | None) -> list[str]:
    """Warnings that apply to all forecasts of a table; empty without a table."""
    if table is None or not len(table):
        return []
    first, *others = table["flags"]
    return [flag for flag in first if all(flag in each for each in others)]


def forecasts(table: pd.DataFrame | None) -> list[dict[str, Any]]:
    """The forecasts of a table, each with its own flags; see `beware` for the common ones."""
    common, rows = beware(table), [] if table is None else table.to_dict("records")
    return [row | {"flags": [flag for flag in row["flags"] if flag not in common]} for row in rows]
