"""The error budget of a cell: why the curve stops, and the gain from more data or a larger model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.answers.allocation import local_exponent, second_floor
from analysis.answers.forecast import FAR, forecast, places
from analysis.intervals.compare import Comparison
from analysis.intervals.profile import Interval
from analysis.laws import LAWS, Array, Law
from analysis.points.cost import SIX_N_D, Cost

_ENDLESS = np.array([1e6, 2e6, 2e6])  # logarithms at which every power vanishes, including that of N/D (`ridge`)


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorBudget:
    """The parts of the error at one cell; they add up to the selected law.

    Attributes:
        N: Number of parameters of the model.
        D: Number of distinct spectra.
        form: The selected form, which gives `value` and `share`.
        table: Rows irreducible, capacity, data, and repetition if the form has repeated spectra (a curve of one
            variable has irreducible and one other): term; value, low, high in the unit of the loss; share, share_low,
            share_high of their sum.
        note: Remarks on its interpretation.
    """

    N: float
    D: float
    form: str
    table: pd.DataFrame
    note: str


def error_budget(comparison: Comparison, N: float, D: float, S: float | None = None) -> ErrorBudget | None:
    """Split the error at (N, D) into the parts removable by a larger model, by more data, and by neither.

    irreducible is the law's limit for infinite N and D. capacity and data are the decrease of the loss for infinite N
    or D. In sums of terms this is each term: E, A/N^alpha, B/D^beta. Where capacity and data interact
    (`kaplan`, `gamma`, `quadrature`), the result depends on which is removed first; both orders are averaged (the Shapley
    value), so that the parts always add up. In `data_constrained`, repetition is the cost of seeing D spectra S/D times each
    instead of S spectra once.

    Intervals are from the bootstrap, with the form selected in each replicate. They are widened about the best value by the
    ratio of the profile interval of the selected form's floor to the bootstrap's, because with few points, replicates built
    from their own residuals scatter too little.

    Args:
        comparison: The fits.
        N: Number of parameters; ignored for curves over D.
        D: Number of distinct spectra; ignored for curves over N.
        S: Samples seen; by default the points' common value.

    Returns:
        The budget; None if the selected form has no limit or a second floor, or N and D move together in the points.

    Raises:
        UserError: A form needs the samples seen, which differ between the points, and S is not given.
    """
    if comparison.points.collinear or second_floor(comparison.law):
        return None
    N, D = float(N), float(D)
    law, replicates = comparison.law.law, comparison.bootstrap
    names = _names(law, comparison.points.axis)
    point = _parts(comparison, law, comparison.law.theta[None], N, D, S, names)[0]
    if not np.all(np.isfinite(point)):
        return None
    sample = np.empty((len(replicates.chosen), len(names)))
    for form in set(replicates.chosen):
        where = replicates.chosen == form
        sample[where] = _parts(comparison, LAWS[form], replicates.draws[form][where], N, D, S, names)
    sample = sample[np.all(np.isfinite(sample), axis=1)]
    shares, widening = sample / sample.sum(axis=1, keepdims=True), _widening(comparison)
    rows = []
    for place, name in enumerate(names):
        value, share = point[place], point[place] / point.sum()
        low, high = _widened(replicates.interval(sample[:, place]), value, widening, np.inf)
        share_low, share_high = _widened(replicates.interval(shares[:, place]), share, widening, 1.0)
        rows.append(
            {"term": name, "value": value, "low": low, "high": high}
            | {"share": share, "share_low": share_low, "share_high": share_high}
        )
    note = _note(law, float(np.mean(replicates.chosen != law.name)))
    return ErrorBudget(N=N, D=D, form=law.name, table=pd.DataFrame(rows), note=note)


def _widening(comparison: Comparison) -> float:
    """Ratio of the floor's interval to the bootstrap's; 1 if it is not wider, or has an open end."""
    own = comparison.law_intervals.get("E")
    if own is None or comparison.interval_method == "bootstrap":
        return 1.0
    draws = comparison.bootstrap.draws[comparison.best][:, comparison.law.law.parameters.index("E")]
    low, high = comparison.bootstrap.interval(draws[np.isfinite(draws)])
    ratio = (own[1] - own[0]) / (high - low) if high > low else 1.0
    return float(max(1.0, ratio)) if np.isfinite(ratio) else 1.0


def _widened(interval: Interval, value: float, factor: float, most: float) -> Interval:
    """Scale an interval about a value by a factor, clipped to 0 and `most`."""
    low, high = (value + factor * (end - value) for end in interval)
    return min(max(low, 0.0), interval[0]), max(min(high, most), interval[1])


def _names(law: Law, axis: str) -> tuple[str, ...]:
    if law.variables == ("x",):
        return ("irreducible", "capacity" if axis == "N" else "data")
    return ("irreducible", "capacity", "data") + (("repetition",) if "S" in law.variables else ())


def _parts(
    comparison: Comparison, law: Law, theta: Array, N: float, D: float, S: float | None, names: tuple[str, ...]
) -> Array:
    """The parts (K, len(names)) at parameters (K, p)."""
    here = places(comparison.points, law, np.array([N]), np.array([D]), None if S is None else np.array([S]))[:, 0]

    def loss(endless: tuple[int, ...] = (), at: Array = here) -> Array:
        logs = at.copy()
        logs[list(endless)] = _ENDLESS[list(endless)]
        return law.value(theta, logs[:, None])[:, 0]

    with np.errstate(over="ignore", invalid="ignore"):
        if law.variables == ("x",):
            return np.stack([loss((0,)), loss() - loss((0,))], axis=1)
        data_axes = tuple(range(1, len(here)))
        floor = loss((0, *data_axes))
        capacity = loss(data_axes) - floor
        once = loss()
        if "S" in law.variables:
            once = loss(at=here[[0, 2, 2]]) if here[1] < here[2] else once
        elif law.together:
            capacity = 0.5 * (capacity + once - loss((0,)))
        parts = [floor, capacity, once - floor - capacity, loss() - once]
        return np.stack(parts[:3] if "repetition" not in names else parts, axis=1)


def _note(law: Law, others: float) -> str:
    words = []
    if law.together:
        words.append(
            f"In the {law.name} form capacity and data act together: each part is the mean of what it would save if "
            "taken away first and if taken away last."
        )
    if law.note:
        words.append(law.note)
    if others > 0.05:
        words.append(
            f"{100 * others:.0f} % of the bootstrap's replicates select another form; the intervals include those."
        )
    return " ".join(words)


def what_would_it_buy(
    comparison: Comparison,
    N: float,
    D: float,
    S: float | None = None,
    cost: Cost = SIX_N_D,
) -> pd.DataFrame:
    """Forecasts of a run like (N, D), and with four times the data, the size, the compute, and both.

    More compute is divided between N and D along the compute-optimal path: N grows by 4^a, D by 4^(1−a).
    That scenario is omitted if the path is not defined. If S is given, it is held fixed, and more training (S) is
    a separate scenario.

    Args:
        comparison: The fits.
        N: Number of parameters.
        D: Number of distinct spectra.
        S: Samples seen; by default the points' common value.
        cost: The cost of a run, see `analysis.answers.allocation`.

    Returns:
        One row per scenario: scenario, the columns of `forecast`, and gain, gain_low, gain_high: the decrease of the law
        relative to its value at (N, D), as a fraction (0.1 is 10 % less error), with the forecast's interval of the curve.
    """
    axis, k = comparison.points.axis, FAR
    scenarios = [("as now", 1.0, 1.0, 1.0)]
    if "D" in axis:
        scenarios.append((f"{k:g}× data", 1.0, k, 1.0))
    if "N" in axis:
        scenarios.append((f"{k:g}× model", k, 1.0, 1.0))
    if S is not None and comparison.points.S is not None:
        scenarios.append((f"{k:g}× training", 1.0, 1.0, k))
    share = local_exponent(comparison, cost, N, D) if axis == "ND" else None
    if share is not None:
        scenarios.append((f"{k:g}× compute", k**share, k ** (1 - share), 1.0))
    if axis == "ND":
        scenarios.append((f"{k:g}× both", k, k, 1.0))
    names, more_n, more_d, more_s = zip(*scenarios, strict=True)
    n, d = N * np.array(more_n), D * np.array(more_d)
    s = None if S is None else S * np.array(more_s)
    table = forecast(comparison, n, d, s)
    table.insert(0, "scenario", names)
    now = table["value"].iloc[0]
    table["gain"], table["gain_low"], table["gain_high"] = (
        1 - table[name] / now for name in ("value", "curve_high", "curve_low")
    )
    table.loc[0, ["gain_low", "gain_high"]] = 0.0
    return table
