"""A fit as plain JSON: the one shape that the command line and the report both write."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.compare import Comparison, lack_of_fit
from analysis.fit import Fit
from analysis.table import Points


def fit_document(comparison: Comparison, forecasts: pd.DataFrame | None = None) -> dict[str, Any]:
    """A comparison as a JSON document about its best form.

    Args:
        comparison: the fits.
        forecasts: what `Bootstrap.forecast` returned, if any.

    Returns:
        form, status, message, objective (the summed one), objective_name, parameters, intervals (name to [low, high])
        with their level, forecasts, selection (form to AICc and weight), lack_of_fit, points, warnings, and forms
        (every form with its own status, parameters and intervals). Values that do not exist are None.
    """
    replicates = comparison.bootstrap
    forms = {
        name: _outcome(fitted) | {"intervals": replicates.parameter_intervals(name) if name in replicates.draws else {}}
        for name, fitted in comparison.fits.items()
    }
    records = [] if forecasts is None else forecasts.to_dict("records")
    return _plain(
        {"form": comparison.best}
        | forms[comparison.best]
        | {
            "level": replicates.level,
            "forecasts": [record | {"flags": [w for w in record["flags"].split("; ") if w]} for record in records],
            "selection": {
                name: {"aicc": comparison.aicc[name], "weight": comparison.weights[name]} for name in comparison.fits
            },
            "lack_of_fit": lack_of_fit(comparison),
            "points": len(comparison.points),
            "warnings": comparison.points.warnings,
            "forms": forms,
        }
    )


def failure_document(fits: Mapping[str, Fit], message: str, points: Points) -> dict[str, Any]:
    """The same shape where no form could be fitted: the first form's outcome, no interval and no forecast."""
    form, fitted = next(iter(fits.items()))
    return _plain(
        {"form": form}
        | _outcome(fitted)
        | {
            "message": message,
            "intervals": {},
            "level": None,
            "forecasts": [],
            "selection": {name: {"aicc": None, "weight": None} for name in fits},
            "lack_of_fit": None,
            "points": len(points),
            "warnings": points.warnings,
            "forms": {name: _outcome(each) | {"intervals": {}} for name, each in fits.items()},
        }
    )


def write_json(document: Mapping[str, Any], path: Path) -> None:
    """Write a document, publishing it by renaming."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)


def _outcome(fitted: Fit) -> dict[str, Any]:
    return {
        "status": fitted.status,
        "message": fitted.message,
        "objective": fitted.value,
        "objective_name": fitted.objective,
        "parameters": fitted.parameters,
    }


def _plain(value: Any) -> Any:
    """The same value with JSON's own types only: NaN and infinities become None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
