"""Command line: `python -m analysis fit TABLE …` and `python -m analysis report TABLE OUT`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

from analysis.compare import NoLawError, compare
from analysis.document import failure_document, fit_document, write_json
from analysis.fit import Objective
from analysis.laws import LAWS
from analysis.report import write_report
from analysis.table import Points, best_trials, is_row_table, law_cells, points_from_cells, points_from_columns
from scaling.errors import UserError
from scaling.study.rows import read_table


class _Parser(argparse.ArgumentParser):
    """Tells a mistake in one line, as every other mistake is told."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}; see {self.prog} --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 the fit failed, 2 the user's mistake (told in one line)."""
    try:
        options = _parser().parse_args(arguments)
        return int(options.command(options))
    except UserError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError, FileExistsError) as error:
        print(f"{error.filename}: {error.strerror}; give another path, or mend this one", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m analysis", description="Fit scaling laws to a table and report on a study.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    fit = commands.add_parser("fit", help="fit a law to a results table, or to three columns of any table")
    fit.add_argument("table", metavar="TABLE", help="results.parquet or a CSV file")
    fit.add_argument("--form", choices=[*LAWS, "auto"], default="auto", help="auto: by AICc (default)")
    fit.add_argument("--objective", choices=get_args(Objective), default="lsq", help="lsq: log residuals (default)")
    for name, what in (("n", "model sizes"), ("d", "data sizes"), ("loss", "what is fitted")):
        fit.add_argument(f"--{name}", metavar="COL", help=f"column of {what} (default: by the table's kind)")
    fit.add_argument("--bootstrap", type=int, default=1000, metavar="K", help="refits a form (default 1000)")
    fit.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    fit.add_argument("--level", type=float, default=0.9, help="coverage of the intervals (default 0.9)")
    fit.add_argument("--at", nargs="+", default=[], metavar="N,D", help="forecast there")
    fit.add_argument("--all", action="store_true", help="fit held-out cells of a results table too")
    fit.add_argument("--json", type=Path, metavar="OUT", help="write the fit as JSON")
    fit.set_defaults(command=_fit)
    report = commands.add_parser("report", help="write the report of a results table")
    report.add_argument("table", metavar="TABLE", help="results.parquet or a CSV file")
    report.add_argument("out", type=Path, metavar="OUT", help="folder of the report")
    report.add_argument("--bootstrap", type=int, default=1000, metavar="K", help="refits a form (default 1000)")
    report.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    report.set_defaults(command=_report)
    return parser


def _fit(options: argparse.Namespace) -> int:
    if not 0 < options.level < 1:
        raise UserError(f"--level {options.level:g}: must lie between 0 and 1, such as 0.9")
    at = [_place(text) for text in options.at]
    points, held_out = _points(options)
    forms = tuple(LAWS) if options.form == "auto" else (options.form,)
    try:
        found = compare(
            points,
            forms,
            objective=options.objective,
            replicates=_positive(options.bootstrap),
            level=options.level,
            seed=options.seed,
        )
    except NoLawError as error:
        document = failure_document(error.fits, str(error), points)
    else:
        forecasts = found.bootstrap.forecast(*zip(*at, strict=True)) if at else None
        document = fit_document(found, forecasts)
    document |= {"held_out": held_out, "bootstrap": options.bootstrap, "seed": options.seed, "table": options.table}
    if options.json:
        if not options.json.parent.is_dir():
            raise UserError(f"{options.json.parent}: no such folder for --json; create it first")
        write_json(document, options.json)
    _tell(document)
    return 0 if document["level"] is not None else 1


def _report(options: argparse.Namespace) -> int:
    page = write_report(
        read_table(options.table), options.out, bootstrap=_positive(options.bootstrap), seed=options.seed
    )
    print(page)
    return 0


def _positive(count: int) -> int:
    if count < 20:
        raise UserError(f"--bootstrap {count}: an interval needs at least 20 refits; 1000 is usual")
    return count


def _place(text: str) -> tuple[float, float]:
    try:
        n, d = (float(part) for part in text.split(","))
    except ValueError:
        n = d = float("nan")
    if not (0 < n < float("inf") and 0 < d < float("inf")):
        raise UserError(f"--at {text}: expected N,D as two positive numbers, such as 1e6,32768")
    return n, d


def _points(options: argparse.Namespace) -> tuple[Points, dict[str, Any] | None]:
    """The points of the table, and for a results table how its held-out cells were treated."""
    frame = read_table(options.table)
    if is_row_table(frame) and not (options.n or options.d or options.loss):
        cells = law_cells(best_trials(frame).cells)
        held = cells["held_out"].astype(bool)
        facts = {"cells": int(held.sum()), "included": bool(options.all)}
        return points_from_cells(cells if options.all else cells[~held]), facts
    names = {str(column).lower(): str(column) for column in frame.columns}
    chosen = (
        options.n or names.get("n", "N"),
        options.d or names.get("d", "D"),
        options.loss or names.get("loss", "loss"),
    )
    return points_from_columns(frame, *chosen), None


def _tell(document: dict[str, Any]) -> None:
    """Print a fit for people."""
    print(f"{document['form']}: {LAWS[document['form']].formula}")
    print(f"{document['status']} ({document['message']}), {document['points']} points")
    for name, value in document["parameters"].items():
        low_high = document["intervals"].get(name)
        known = "unknown" if value is None else f"{value:.6g}"
        print(f"  {name:6} {known:>12}" + (f"  [{low_high[0]:.4g}, {low_high[1]:.4g}]" if low_high else ""))
    if document["level"] is not None:
        weights = ", ".join(f"{form} {each['weight']:.3f}" for form, each in document["selection"].items())
        print(f"  intervals at {100 * document['level']:g} %; Akaike weights: {weights}")
    test = document["lack_of_fit"]
    print("lack of fit: " + (f"p = {test['p']:.3g}" if test else "not testable (needs two runs a cell)"))
    held = document["held_out"]
    if held and held["cells"]:
        print(f"held-out cells: {held['cells']}, {'fitted too (--all)' if held['included'] else 'not fitted'}")
    for cast in document["forecasts"]:
        flags = f"  ({'; '.join(cast['flags'])})" if cast["flags"] else ""
        print(
            f"at N = {cast['N']:g}, D = {cast['D']:g}: {cast['value']:.5g} [{cast['low']:.5g}, {cast['high']:.5g}]{flags}"
        )
    for warning in document["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
