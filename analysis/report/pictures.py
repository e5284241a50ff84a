"""The figures of a report: those supported by its table, with captions, as files and as elements of the page."""

from __future__ import annotations

import colorsys
import html
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
from matplotlib.figure import Figure

from analysis.answers.budget import error_budget
from analysis.points.anchors import Anchor
from analysis.points.limit import Limit
from analysis.report import figures, words
from analysis.report.figures.snr import mae_by_snr
from analysis.report.findings import Findings
from scaling.results import measure_of

Picture = dict[str, str]
"""A figure of the page: "svg", an element, and "caption"."""

TRIAL_CURVES = "../trials/{trial}/progress.csv"
"""Path of a trial's curve relative to a report inside its study's store."""

_LAW = "Lines and floor: the law fitted without the held-out cells (open markers), with the interval of its curve"
_ANCHORS = (
    " Named below the axis: models from outside this study, with the standard error of their score; no part of the fit."
)
_BASELINES = " Grey: other methods on the same spectra, each with the law of its own errors over D."
_WHITE = "#ffffff"
_COLOUR = re.compile(r"(fill|stroke): (#[0-9a-f]{6})(?!; stroke: #ffffff)")
_ID = re.compile(r'( id="|url\(#|xlink:href="#)')
_POINT = re.compile(r'<a xlink:href="#([^"]+)" target="_blank">')


def save_pictures(
    findings: Findings,
    limit: Limit | None,
    anchors: Sequence[Anchor],
    folder: Path,
    curves: str = "",
    formats: Sequence[str] = figures.FORMATS,
) -> dict[str, Picture]:
    """Draw the figures that the table supports and save them for publication; returns name to picture.

    Args:
        findings: Findings from the table.
        limit: The information limit of the test spectra, if known.
        anchors: Scores of external models.
        folder: Folder of the files.
        curves: Address of a trial's curve relative to the page, with "{trial}" for the name; "" for no links.
        formats: Formats of the files, including "svg".
    """
    trials = findings.rows.drop_duplicates("trial").set_index("trial")
    found = {}
    for name, (figure, caption) in _figures(findings, limit, anchors).items():
        svg = figures.save(figure, folder, name, formats)["svg"].read_text()
        found[name] = {"caption": caption, "svg": as_element(svg, name, trials, curves)}
    return found


def as_element(svg: str, name: str, trials: pd.DataFrame, curves: str) -> str:
    """Convert an SVG file to an element of a page with several: unique ids, points with their trial's numbers.

    Args:
        svg: Content of the file, with points named by `figures.style.name_trials`.
        name: Name of the figure.
        trials: Rows of the results table by trial.
        curves: See `save_pictures`.
    """

    def point(found: re.Match[str]) -> str:
        trial = unquote(found[1])
        link = f' href="{html.escape(curves.format(trial=found[1]))}"' if curves else ""
        numbers = html.escape(words.trial(trials.loc[trial]))
        return f'<a class="point" data-trial="{html.escape(trial)}" tabindex="-1"{link}><title>{numbers}</title>'

    svg = _COLOUR.sub(_in_both_themes, re.sub(rf'(<use[^>]*style="fill: ){_WHITE}', r"\1var(--paper)", svg))
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    pieces = _POINT.split(svg)  # alternating text and trial names; the names are not ids
    pieces[::2] = [_ID.sub(rf"\g<1>{name}-", piece) for piece in pieces[::2]]
    svg = "".join(f'<a xlink:href="#{piece}" target="_blank">' if k % 2 else piece for k, piece in enumerate(pieces))
    return _POINT.sub(point, svg)


def _in_both_themes(found: re.Match[str]) -> str:
    """A colour with its dark-mode counterpart of inverted lightness; white lies on colours and is kept."""
    name, colour = found.groups()
    if colour == _WHITE:
        return found[0]
    hue, lightness, saturation = colorsys.rgb_to_hls(*(int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)))
    other = colorsys.hls_to_rgb(hue, 0.92 - 0.8 * lightness, 0.8 * saturation)
    return f"{found[0]}; {name}: light-dark({colour}, #{''.join(f'{round(255 * part):02x}' for part in other)})"


def _figures(findings: Findings, limit: Limit | None, anchors: Sequence[Anchor]) -> dict[str, tuple[Figure, str]]:
    """Maps names to figures and captions; figures that the table does not support are left out."""
    if not len(findings.cells):
        return {}
    cells, fitted = findings.cells, findings.fitted
    observed = figures.Observed.from_cells(cells)
    path = None if findings.answers is None else findings.answers.path
    law = (f" {_LAW}" if fitted is not None else "", f"{_ANCHORS if anchors else ''}")
    drawn: dict[str, tuple[Figure | None, str]] = {}
    if cells["num_spectra"].nunique() > 1:
        beyond = "; dashed beyond the data, as far as forecasts are made." if law[0] else ""
        drawn["error_against_data"] = (
            figures.error_against_data(
                observed, fitted, anchors, findings.baselines, None if limit is None else limit.mae_dex
            ),
            f"Test error over D.{law[0]}{beyond}{law[1]}{_BASELINES if findings.baselines else ''}",
        )
    if cells["num_params"].nunique() > 1:
        drawn["error_against_size"] = (
            figures.error_against_size(observed, fitted, anchors),
            f"Test error over N.{law[0]}{'.' if law[0] else ''}{law[1]}",
        )
    drawn["error_against_compute"] = (
        figures.error_against_compute(observed, path),
        "Test error over the training compute of the chosen trial; dashed, the lowest error yet measured with that much"
        + (
            ", and as a heavy line the compute-optimal path of the law fitted to all cells."
            if path is not None
            else "."
        ),
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
        caption += "; the heavy line is the compute-optimal path." if answers.path is not None else "."
        drawn["error_surface"] = figures.error_surface(observed, fitted, answers.path), caption
    if findings.score is not None:
        caption = "Forecast against observation on cells that took no part in the fit; on the line is right."
        drawn["held_out"] = figures.held_out(findings.score, fitted.level, observed.error), caption
    if findings.backtests:
        first = findings.backtests[0]
        caption = f"Forecast against observation of the larger cells, from the {first.fitted} smallest alone."
        drawn["backtest"] = figures.held_out(first.score, final.level, observed.error), caption
    caption = "Observed over forecast by the law: a trend here is something the form does not describe."
    drawn["residuals"] = figures.residuals(fitted), caption
    caption = (
        "How much worse the fit gets when one parameter is held elsewhere: within the interval (shaded) the rise stays "
        "below the threshold of the F test. Where the test set's own error is known, the shaded interval holds it too."
    )
    drawn["profiles"] = figures.profiles(fitted, unit=measure_of(findings.rows).unit), caption
    points = final.points
    seen = dict(zip(zip(points.N, points.D, strict=True), points.S, strict=True)) if points.S is not None else {}
    places = sorted({*zip(observed.N, observed.D, strict=True)})
    budgets = [error_budget(final, N, D, seen.get((N, D))) for N, D in places]
    shown = [budget for budget in budgets if budget is not None]
    if shown:
        caption = "The parts of the error in every cell, from the law fitted to all cells; points are measured."
        drawn["error_budgets"] = figures.error_budgets(shown, observed, final.level), caption
    return drawn
