"""Command line: `python -m analysis fit TABLE …` and `python -m analysis report TABLE OUT`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

import numpy as np
import pandas as pd

from analysis.answers.forecast import forecast
from analysis.answers.next_runs import Hours, run_hours
from analysis.fitting.fit import DELTA
from analysis.fitting.solve import Objective
from analysis.intervals.compare import NoLawError, Weigh, compare
from analysis.laws import CURVES, LAWS
from analysis.points.branches import whole_budgets
from analysis.points.cost import SIX_N_D, Cost, column_cost, study_cost
from analysis.points.limit import read_limit
from analysis.points.table import Points, column_names, points_from_columns, require_falling
from analysis.points.trials import best_trials, is_row_table, law_cells, points_from_cells
from analysis.report.document import failure_document, fit_document
from analysis.report.page import check_report, write_report
from analysis.report.pictures import TRIAL_CURVES
from analysis.report.terminal import print_fit
from scaling.errors import UserError
from scaling.files import FINAL, check_output, write_json_output
from scaling.results import measure_of, read_table

_FEWEST_REFITS, _MOST_REFITS = 20, 100_000


class _Parser(argparse.ArgumentParser):
    """Reports usage errors in one line, like all other errors."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}; see {self.prog} --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Exit status: 0 done, 1 no form could be fitted, 2 user error (one line), 130 interrupted."""
    try:
        options = _parser().parse_args(arguments)
        return int(options.command(options))
    except UserError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    except (*FINAL, FileExistsError) as error:
        print(f"{error.filename}: {error.strerror}; give another path, or correct this one", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; nothing half-written is left", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m analysis", description="Fit scaling laws to a table and report on a study.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    fit = commands.add_parser("fit", help="fit a law to a results table, or to named columns of any table")
    fit.add_argument("table", metavar="TABLE", help="results.parquet, or any Parquet or CSV file")
    fit.add_argument("--form", choices=[*LAWS, "auto"], default="auto", help="auto: by AICc (default)")
    fit.add_argument("--objective", choices=get_args(Objective), default="lsq", help="lsq: log residuals (default)")
    fit.add_argument("--delta", type=float, default=DELTA, help="of huber, in log loss (default 1e-3)")
    for name, what in (
        ("n", "model sizes"),
        ("d", "data sizes"),
        ("loss", "what is fitted"),
        ("samples-seen", "samples seen in training, where data were repeated"),
        ("sem", "standard errors of the loss from the finite test set"),
        ("c", "compute in FLOPs"),
    ):
        fit.add_argument(f"--{name}", metavar="COL", help=f"column of {what}")
    fit.add_argument("--flops-per", type=float, metavar="K", help="compute is K·N·D (default 6, or from the rows)")
    fit.add_argument("--bootstrap", type=int, default=1000, metavar="K", help="refits a form (default 1000)")
    fit.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    fit.add_argument("--level", type=float, default=0.9, help="coverage of the intervals (default 0.9)")
    fit.add_argument(
        "--at", nargs="+", default=[], metavar="N,D", help="forecast there (N,D,S with samples seen; or x)"
    )
    fit.add_argument("--all", action="store_true", help="fit held-out cells of a results table too")
    _add_limit(fit)
    fit.add_argument(
        "--weigh",
        choices=get_args(Weigh),
        default="backtest",
        help="forecasts weigh forms by how they extrapolated within the runs (default), or by AICc alone",
    )
    fit.add_argument("--json", type=Path, metavar="OUT", help="write the fit as JSON")
    fit.set_defaults(command=_fit)
    report = commands.add_parser("report", help="write the report of a results table")
    report.add_argument("table", metavar="TABLE", help="results.parquet or a CSV file")
    report.add_argument("out", type=Path, metavar="OUT", help="folder of the report")
    report.add_argument("--bootstrap", type=int, default=1000, metavar="K", help="refits a form (default 1000)")
    report.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    _add_limit(report)
    report.set_defaults(command=_report)
    return parser


def _add_limit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--limit",
        type=Path,
        metavar="JSON",
        help="information limit, as `scaling limit --json` writes: it bounds the floor of the laws",
    )


def _fit(options: argparse.Namespace) -> int:
    _check(options)
    points, cost, hours, facts = _input(options)
    places = [_place(text, points) for text in options.at]
    try:
        found = compare(
            points,
            _forms(options.form, points),
            objective=options.objective,
            delta=options.delta,
            replicates=options.bootstrap,
            level=options.level,
            seed=options.seed,
            weigh=options.weigh,
        )
        forecasts = pd.concat([forecast(found, *place) for place in places]) if places else None
        document = fit_document(found, forecasts, cost, hours=hours)
    except NoLawError as error:
        document = failure_document(error.fits, str(error), points)
    document |= facts | {"bootstrap": options.bootstrap, "seed": options.seed, "table": options.table}
    write_json_output(options.json, document, [options.table])
    print_fit(document, points.axis)
    return 0 if document["level"] is not None else 1


def _report(options: argparse.Namespace) -> int:
    _check_bootstrap(options)
    check_report(options.out, [options.table, *([] if options.limit is None else [options.limit])])
    limit = None if options.limit is None else read_limit(options.limit)
    in_store = (options.out.absolute().parent / "trials").is_dir()
    page = write_report(
        _read(options.table),
        options.out,
        bootstrap=options.bootstrap,
        seed=options.seed,
        limit=limit,
        curves=TRIAL_CURVES if in_store else "",
    )
    print(page)
    return 0


def _check(options: argparse.Namespace) -> None:
    """Reject values that no fit can use, before anything is read."""
    _check_bootstrap(options)
    if not 0 < options.level < 1:
        raise UserError(f"--level {options.level:g}: must lie between 0 and 1, such as 0.9")
    for name, value in (("--delta", options.delta), ("--flops-per", options.flops_per or 1.0)):
        if not 0 < value < np.inf:
            raise UserError(f"{name} {value:g}: must be a positive number")
    if options.c and options.flops_per:
        raise UserError("--c and --flops-per both say what compute is; give one of them")
    if options.json is not None:
        check_output(options.json, [options.table])


def _check_bootstrap(options: argparse.Namespace) -> None:
    if not _FEWEST_REFITS <= options.bootstrap <= _MOST_REFITS:
        raise UserError(
            f"--bootstrap {options.bootstrap}: an interval needs at least {_FEWEST_REFITS} refits, and at most "
            f"{_MOST_REFITS} are made; 1000 is usual"
        )
    if options.seed < 0:
        raise UserError(f"--seed {options.seed}: must be a whole number, 0 or more")


def _read(table: str) -> pd.DataFrame:
    if Path(table).is_dir():
        raise UserError(f"{table}: a folder; give a results.parquet or a CSV file in it")
    return read_table(table)


def _input(options: argparse.Namespace) -> tuple[Points, Cost, Hours | None, dict[str, Any]]:
    """The table's points, a run's cost in FLOPs and in hours, and facts for the document (columns, held-out cells)."""
    frame = _read(options.table)
    limit = None if options.limit is None else read_limit(options.limit)
    cost = SIX_N_D if options.flops_per is None else _flops_per(options.flops_per)
    if not is_row_table(frame):
        if limit is not None:
            raise UserError(f"--limit {options.limit}: needs a results table, which names its test spectra")
        names = column_names(frame, options.n, options.d, options.loss)
        points = points_from_columns(
            frame, names["n"], names["d"], str(names["loss"]), samples_seen=options.samples_seen, sem=options.sem
        )
        require_falling(points, str(names["loss"]))
        return points, _column_cost(frame, names, options) or cost, None, {"columns": names, "held_out": None}
    for name, given, own in (
        ("samples-seen", options.samples_seen, "samples_seen"),
        ("sem", options.sem, "test_mae_sem_dex"),
    ):
        if given not in (None, own):
            raise UserError(
                f"--{name} {given}: a results table has its own column, {own}; leave the option out or name that"
            )
    every_budget = options.samples_seen is not None or options.form == "data_constrained"
    trials = best_trials(frame if every_budget else whole_budgets(frame))
    cells = law_cells(trials.cells)
    held = cells["held_out"].astype(bool)
    facts = {"cells": int(held.sum()), "included": bool(options.all)}
    cells = cells if options.all else cells[~held].reset_index(drop=True)
    points = points_from_cells(cells, options.n, options.d, options.loss, limit)
    points.warnings.extend(trials.warnings)
    names = {
        "n": options.n or "num_params",
        "d": options.d or "num_spectra",
        "loss": options.loss or measure_of(cells).test,
    }
    if options.flops_per is None:
        cost = study_cost(cells)
    hours = run_hours(cells) if names["n"] == "num_params" and names["d"] == "num_spectra" else None
    return points, _column_cost(cells, names, options) or cost, hours, {"columns": names, "held_out": facts}


def _flops_per(kappa: float) -> Cost:
    return Cost(flops_per_param_sample=kappa, words=f"C = {kappa:g} N D, as given")


def _column_cost(frame: pd.DataFrame, names: dict[str, Any], options: argparse.Namespace) -> Cost | None:
    """The cost from the column given by --c, if there is one and the table has both N and D."""
    if options.c is None or names["n"] is None or names["d"] is None:
        return None
    compute = points_from_columns(frame, names["n"], names["d"], options.c)
    return column_cost(compute.N, compute.D, compute.loss)


def _forms(form: str, points: Points) -> tuple[str, ...] | None:
    if form == "auto":
        return None
    if points.axis != "ND" and form not in CURVES:
        raise UserError(
            f"--form {form}: needs a table in which N and D vary, but only {points.axis} does; use one of "
            f"{', '.join(CURVES)}"
        )
    return (form,)


def _place(text: str, points: Points) -> tuple[float, ...]:
    """Parse the arguments of `forecast` from "N,D", "N,D,S", or "x" for a curve."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    curve = points.axis != "ND"
    counts = (1,) if curve else (2,) if points.S is None else (2, 3)
    if len(values) not in counts or not all(0 < value < np.inf for value in values):
        wanted = f"one positive number, a value of {points.axis}, such as 1e6" if curve else "N,D such as 1e9,2e10"
        if not curve and points.S is not None:
            wanted += ", or N,D,S with the samples seen"
        raise UserError(f"--at {text}: expected {wanted}")
    if not curve:
        return values
    return (values[0], float(points.D[0])) if points.axis == "N" else (float(points.N[0]), values[0])


if __name__ == "__main__":
    sys.exit(main())
