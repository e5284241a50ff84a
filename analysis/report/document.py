"""A fit as plain JSON, in the format shared by the command line and the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from analysis.answers.allocation import compute_optimal, no_path
from analysis.answers.backtest import Backtest, backtests
from analysis.answers.baselines import Baseline
from analysis.answers.budget import error_budget
from analysis.answers.checks import lack_of_fit, residual_trends
from analysis.answers.isoflop import planned_profiles
from analysis.answers.next_runs import Hours, next_runs
from analysis.fitting.fit import Fit
from analysis.intervals.compare import Comparison
from analysis.points.cost import SIX_N_D, Cost
from analysis.points.table import Points
from analysis.report import words
from scaling.files import plain

OUTLYING = 5.0
"""Distance from the law, in robust standard deviations, beyond which a run is named in a warning."""

_NAMED = 5  # maximum number of outliers, and of next runs, that are listed
_SIGMA = 1.4826  # standard deviation of a normal distribution over its median absolute deviation


def fit_document(
    comparison: Comparison,
    forecasts: pd.DataFrame | None = None,
    cost: Cost = SIX_N_D,
    tests: list[Backtest] | None = None,
    hours: Hours | None = None,
) -> dict[str, Any]:
    """Convert a comparison to a JSON document about its selected form.

    Args:
        comparison: The fits.
        forecasts: Result of `forecast`, if any.
        cost: The cost of a run.
        tests: The backtests, if already computed.
        hours: Device-hours of a run, see `run_hours`, to find the runs that would narrow the last forecast most.

    Returns:
        form, status, message, objective (the summed one), objective_name, delta, parameters, intervals (name to
        [low, high]) with interval_method and level, forecasts, selection (form to aicc, weight and
        status), lack_of_fit, backtests, residual_trends, budget (at the largest run), allocation, isoflop,
        next_runs, points, run_weights, warnings, and forms (every form with its own status, parameters and intervals).
        Values that do not exist, and unknown ends of intervals, are None.
    """
    fits, best = comparison.fits, comparison.best
    forms = {
        name: _outcome(fitted) | {"intervals": comparison.intervals.get(name, {})} for name, fitted in fits.items()
    }
    found = comparison.extrapolation
    selection = {
        name: {
            "aicc": comparison.aicc[name],
            "weight": comparison.weights[name],
            "forecast_weight": found.weights.get(name, 0.0),
            "backtest_error": found.errors.get(name),
            "status": fitted.status,
        }
        for name, fitted in fits.items()
    }
    lack = lack_of_fit(comparison.law, comparison.points)
    document = {
        "form": best,
        **forms[best],
        "interval_method": comparison.interval_method,
        "level": comparison.level,
        "forecasts": [] if forecasts is None else forecasts.to_dict("records"),
        "selection": selection,
        "lack_of_fit": None if lack is None else asdict(lack),
        "backtests": [_backtest(each) for each in (backtests(comparison) if tests is None else tests)],
        "extrapolation": {"growth": found.growth, "dof": found.dof, "words": found.words},
        "residual_trends": residual_trends(comparison).to_dict("records"),
        "budget": _budget(comparison),
        "allocation": _allocation(comparison, cost),
        "isoflop": _isoflop(comparison, cost),
        "next_runs": _next_runs(comparison, forecasts, hours),
        "beside_chinchilla": words.beside_chinchilla(comparison),
        "points": len(comparison.points),
        "floor_bound": comparison.points.floor or None,
        "run_weights": comparison.scatter.words,
        "warnings": [*comparison.points.warnings, *_outliers(comparison), *_unfinished(comparison)],
        "forms": forms,
    }
    return dict(plain(document))


def failure_document(fits: Mapping[str, Fit], message: str, points: Points) -> dict[str, Any]:
    """The same format if no form could be fitted: the first form's outcome, no interval and no forecast."""
    form, fitted = next(iter(fits.items()))
    document = {
        "form": form,
        **_outcome(fitted),
        "message": message,
        "intervals": {},
        "interval_method": None,
        "level": None,
        "forecasts": [],
        "selection": {
            name: {"aicc": None, "weight": None, "forecast_weight": None, "backtest_error": None, "status": each.status}
            for name, each in fits.items()
        },
        "lack_of_fit": None,
        "backtests": [],
        "extrapolation": None,
        "residual_trends": [],
        "budget": None,
        "allocation": None,
        "isoflop": None,
        "next_runs": None,
        "beside_chinchilla": "",
        "points": len(points),
        "floor_bound": points.floor or None,
        "run_weights": None,
        "warnings": points.warnings,
        "forms": {name: _outcome(each) | {"intervals": {}} for name, each in fits.items()},
    }
    return dict(plain(document))


def baseline_document(found: Baseline) -> dict[str, Any]:
    """A baseline's law and crossing as plain values; D = 0 or None (infinity) means outside the runs."""
    law = None if found.law is None else fit_document(found.law)
    crossing = None if found.crossing is None else asdict(found.crossing)
    return {"family": found.family, "problem": found.problem, "crossing": crossing, "law": law}


def _backtest(test: Backtest) -> dict[str, Any]:
    facts = {name: getattr(test, name) for name in ("share", "fitted", "form", "reach", "words")}
    score = test.score
    return facts | {"held": len(score.table), "inside": score.inside, "mean_abs_log_error": score.mean_abs_log_error}


def _outcome(fitted: Fit) -> dict[str, Any]:
    return {
        "status": fitted.status,
        "message": fitted.message,
        "objective": fitted.value,
        "objective_name": fitted.objective,
        "delta": fitted.delta if fitted.objective == "huber" else None,
        "parameters": fitted.parameters,
    }


def _budget(comparison: Comparison) -> dict[str, Any] | None:
    """The error budget at the largest run."""
    points = comparison.points
    largest = int(np.argmax(points.N * points.D))
    seen = None if points.S is None else float(points.S[largest])
    budget = error_budget(comparison, points.N[largest], points.D[largest], seen)
    if budget is None:
        return None
    place = {"N": budget.N, "D": budget.D, "S": seen}
    return place | {"form": budget.form, "terms": budget.table.to_dict("records"), "note": budget.note}


def _allocation(comparison: Comparison, cost: Cost) -> dict[str, Any]:
    """The compute-optimal path, or the reason why there is none."""
    path = compute_optimal(comparison, cost)
    if path is None:
        return {"exponent": None, "interval": None, "words": no_path(comparison, cost), "path": []}
    found = {"exponent": path.exponent, "interval": path.interval, "words": path.words}
    return found | {"flops_per_param_sample": cost.flops_per_param_sample, "path": path.table.to_dict("records")}


def _isoflop(comparison: Comparison, cost: Cost) -> dict[str, Any] | None:
    """IsoFLOP profiles, if the runs were planned for them."""
    found = planned_profiles(comparison.points, cost, comparison.level)
    if found is None:
        return None
    facts = {name: getattr(found, name) for name in ("a", "a_interval", "words")}
    return facts | {"profiles": found.profiles.to_dict("records")}


def _next_runs(comparison: Comparison, forecasts: pd.DataFrame | None, hours: Hours | None) -> dict[str, Any] | None:
    """The runs that narrow the law's interval most per device-hour, at the last forecast or at four times N and D."""
    points = comparison.points
    if hours is None or points.axis != "ND" or points.samples_vary:
        return None
    largest = int(np.argmax(points.N * points.D))
    target = (4 * float(points.N[largest]), 4 * float(points.D[largest]))
    if forecasts is not None and len(forecasts):
        target = (float(forecasts["N"].iloc[-1]), float(forecasts["D"].iloc[-1]))
    runs = next_runs(comparison, target, hours).head(_NAMED)
    return {"N": target[0], "D": target[1], "runs": runs.to_dict("records")}


def _outliers(comparison: Comparison) -> list[str]:
    """Runs far from the law, relative to the median absolute residual."""
    points, residuals = comparison.points, comparison.law.residuals
    spread = _SIGMA * float(np.median(np.abs(residuals)))
    far = np.flatnonzero(np.abs(residuals) > OUTLYING * spread) if spread > 0 else np.array([], int)
    if not len(far):
        return []
    far = far[np.argsort(-np.abs(residuals[far]))]
    named = "; ".join(
        f"N = {points.N[k]:.6g}, D = {points.D[k]:.6g}, loss = {points.loss[k]:.6g} ({residuals[k] / spread:+.0f})"
        for k in far[:_NAMED]
    )
    more = f"; and {len(far) - _NAMED} more" if len(far) > _NAMED else ""
    return [
        f"runs that lie more than {OUTLYING:g} robust standard deviations from the law are in the fit ({len(far)}): "
        f"{named}{more}"
    ]


def _unfinished(comparison: Comparison) -> list[str]:
    replicates = comparison.bootstrap
    count, total = replicates.unfinished[comparison.best], len(replicates.chosen)
    if count <= 0.01 * total:
        return []
    return [f"{count} of {total} refits of the bootstrap stopped before their minimum; its intervals are rough"]
