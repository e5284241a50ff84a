"""A fit as text for the terminal: intervals before numbers, warnings separately."""

from __future__ import annotations

import sys
from typing import Any

from analysis.laws import LAWS
from scaling.console import duration

_WIDTH = 26


def print_fit(document: dict[str, Any], axis: str) -> None:
    """Print the document of a fit; warnings go to standard error.

    Args:
        document: Result of `fit_document` or `failure_document`, with "columns" and "held_out".
        axis: Which of N and D vary.
    """
    if document["level"] is None:
        print(f"No law: {document['message']}")
    else:
        print(f"{document['form']}: {LAWS[document['form']].formula}")
        _print_law(document)
        _print_checks(document)
        _print_answers(document, axis)
        for cast in document["forecasts"]:
            _print_forecast(cast, axis)
        _print_next_runs(document)
    for warning in document["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)


def _print_law(document: dict[str, Any]) -> None:
    columns = ", ".join(
        f"{name if name == 'loss' else name.upper()} is {column}"
        for name, column in document["columns"].items()
        if column
    )
    delta = f" (delta {document['delta']:g})" if document["delta"] is not None else ""
    print(f"{document['points']} points ({columns}); objective {document['objective_name']}{delta} ", end="")
    print(f"{document['objective']:.9g}; {document['status']}: {document['message']}")
    held = document["held_out"]
    if held and held["cells"]:
        print(f"held-out cells: {held['cells']}, {'fitted too (--all)' if held['included'] else 'not fitted'}")
    method = "profile likelihood" if document["interval_method"] == "profile" else "bootstrap"
    print(f"{100 * document['level']:g} % intervals ({method}), then the values:")
    for name, value in document["parameters"].items():
        print(f"  {name:6} {_interval(document['intervals'].get(name), f'{value:.6g}')}")
    weights = {form: each["weight"] for form, each in document["selection"].items()}
    if len(weights) > 1:
        ranked = sorted(weights, key=lambda form: -weights[form])
        print("forms by Akaike weight: " + ", ".join(f"{form} {weights[form]:.3f}" for form in ranked))
        shares = {form: each["forecast_weight"] for form, each in document["selection"].items()}
        ranked = sorted(shares, key=lambda form: -shares[form])
        print("forms by weight in forecasts: " + ", ".join(f"{form} {shares[form]:.3f}" for form in ranked))
    print(document["extrapolation"]["words"])
    if document["beside_chinchilla"]:
        print(document["beside_chinchilla"])
    if document["floor_bound"]:
        print(f"the information limit bounds the floor: E ≥ {document['floor_bound']:.4g}")


def _print_checks(document: dict[str, Any]) -> None:
    test = document["lack_of_fit"]
    print("lack of fit: " + (f"p = {test['p']:.3g}" if test else "not testable (needs repeats in most cells)"))
    for test in document["backtests"]:
        print(f"backtest: {test['words']}")
    trends = [each["axis"] for each in document["residual_trends"] if each["p"] < 0.01]
    if trends:
        print(f"residuals still depend on {', '.join(trends)} (p < 0.01)")


def _print_answers(document: dict[str, Any], axis: str) -> None:
    budget = document["budget"]
    if budget:
        parts = [
            f"{term['term']} {_percent(term['share_low'])} to {_percent(term['share_high'])} %"
            for term in budget["terms"]
        ]
        print(f"error at the largest run ({_at(budget, axis)}): {', '.join(parts)}")
        if budget["note"]:
            print(f"  {budget['note']}")
    if document["allocation"]["words"]:
        print(f"compute: {document['allocation']['words']}")
    if document["isoflop"]:
        print(f"compute, without a law (isoFLOP profiles): {document['isoflop']['words']}")


def _print_next_runs(document: dict[str, Any]) -> None:
    found = document["next_runs"]
    if found:
        print(
            f"one more run would narrow the law at N = {found['N']:g}, D = {found['D']:g}, for each device-hour most:"
        )
        for run in found["runs"]:
            what = f"N = {run['N']:g}, D = {run['D']:g} ({run['kind']})"
            print(f"  {what:40} {duration(3600 * run['hours'])} of one device, by {100 * run['shrink']:.1f} %")


def _print_forecast(cast: dict[str, Any], axis: str) -> None:
    place = _at(cast, axis)
    flags = f" ({'; '.join(cast['flags'])})" if cast["flags"] else ""
    if cast["refused"]:
        print(f"at {place}: refused{flags}")
        return
    value = f"{cast['value']:.5g}"
    print(f"at {place}: {_interval((cast['low'], cast['high']), value)}{flags}")


def _at(place: dict[str, Any], axis: str) -> str:
    return ", ".join(f"{name} = {place[name]:g}" for name in axis)


def _interval(ends: Any, value: str) -> str:
    if not ends:
        return f"{'[unknown]':{_WIDTH}} {value}"
    low, high = ("unbounded" if end is None else f"{end:.5g}" for end in ends)
    return f"{f'[{low}, {high}]':{_WIDTH}} {value}"


def _percent(share: float | None) -> str:
    return "?" if share is None else f"{100 * share:.3g}"
