"""Comparison of forms: fits of all suitable ones, AICc weights, parsimonious selection, and intervals of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from analysis.fitting.extrapolation import Extrapolation, extrapolation
from analysis.fitting.fit import DELTA, Fit, fit
from analysis.fitting.likelihood import Likelihood, likelihood
from analysis.fitting.selection import FEWEST_LEFT, aicc, akaike_weights, criterion, selected, sum_of_squares
from analysis.fitting.solve import Objective
from analysis.fitting.weights import Weights, run_weights
from analysis.intervals.bootstrap import Bootstrap, bootstrap
from analysis.intervals.profile import Interval, parameter_intervals
from analysis.laws import AMPLITUDES, LAWS, SELECTABLE, Array, Law
from analysis.points.table import Points
from scaling.errors import UserError

Weigh = Literal["backtest", "aicc"]

_CURVES = ("m1", "m2", "m3")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Several forms fitted to the same points. Expensive attributes are computed lazily and cached.

    Attributes:
        points: The fitted points.
        fits: Maps each form to its fit, in the requested order, whatever the outcome.
        aicc: Maps each form to its corrected Akaike criterion; infinite if the form is not usable.
        weights: Maps each form to its Akaike weight; they add up to 1 over the usable forms.
        best: The selected form: the simplest whose AICc is within `PARSIMONY` of the lowest.
        scatter: The weights of the runs, with their explanation.
        replicates: Number of bootstrap replicates.
        level: Coverage of all intervals.
        seed: Seed of the bootstrap.
        weigh: The criterion by which forecasts weight forms.
    """

    points: Points
    fits: dict[str, Fit]
    aicc: dict[str, float]
    weights: dict[str, float]
    best: str
    scatter: Weights
    replicates: int
    level: float
    seed: int
    weigh: Weigh

    @property
    def law(self) -> Fit:
        """The fit of the selected form."""
        return self.fits[self.best]

    @property
    def usable(self) -> dict[str, Fit]:
        """The competing forms: their fit is usable, with enough degrees of freedom."""
        return {form: fitted for form, fitted in self.fits.items() if np.isfinite(self.aicc[form])}

    @property
    def interval_method(self) -> Literal["profile", "bootstrap"]:
        """The source of intervals: profiles for the objectives "lsq" and "linear", else the bootstrap."""
        return "profile" if self.law.objective in ("lsq", "linear") else "bootstrap"

    @property
    def evaluation(self) -> float:
        """Relative standard error of the loss from the finite test set, common to all cells; 0 if unknown."""
        sem, loss = self.points.sem, self.points.loss
        return 0.0 if sem is None else float(np.sqrt(np.nanmean((sem / loss) ** 2)))

    @cached_property
    def likelihoods(self) -> dict[str, Likelihood]:
        """The sum of squares near the minimum for each usable form; empty for "huber" and "l1"."""
        if self.interval_method == "bootstrap":
            return {}
        return {form: likelihood(fitted, self.points) for form, fitted in self.usable.items()}

    @cached_property
    def bootstrap(self) -> Bootstrap:
        """Bootstrap replicates of the usable forms."""
        m, squares = int(self.points.groups.max()) + 1, sum_of_squares(self.fits.values())

        def select(values: Mapping[str, Array]) -> NDArray[np.str_]:
            return selected({form: criterion(each, self.fits[form], m, squares) for form, each in values.items()})

        return bootstrap(self.points, self.usable, select, replicates=self.replicates, level=self.level, seed=self.seed)

    @cached_property
    def law_intervals(self) -> dict[str, Interval]:
        """Maps each parameter of the selected form to (low, high)."""
        return self._intervals(self.best)

    @cached_property
    def intervals(self) -> dict[str, dict[str, Interval]]:
        """Maps each usable form and parameter to (low, high)."""
        return {form: self.law_intervals if form == self.best else self._intervals(form) for form in self.usable}

    def _intervals(self, form: str) -> dict[str, Interval]:
        fitted = self.fits[form]
        if self.interval_method == "profile":
            own = parameter_intervals(self.likelihoods[form], self.level)
        else:
            columns = self.bootstrap.draws[form].T
            own = dict(zip(fitted.law.parameters, map(self.bootstrap.interval, columns), strict=True))
        widened = _with_evaluation(own, fitted, self.evaluation, self.level)
        if "E" in widened:
            low, high = widened["E"]
            widened["E"] = (max(low, self.points.floor), max(high, self.points.floor))
        return widened

    @cached_property
    def extrapolation(self) -> Extrapolation:
        """The basis of forecasts: weights of the usable forms, and the growth of the error beyond the points."""
        if self.weigh == "aicc":
            weights = {form: self.weights[form] for form in self.usable}
            return Extrapolation(splits=[], weights=weights, growth=0.0, dof=np.inf)
        return extrapolation(self.points, self.usable, self.aicc)


class NoLawError(UserError):
    """No form could be fitted and weighted on these points; `fits` holds the outcome of each."""

    def __init__(self, message: str, fits: dict[str, Fit]) -> None:
        super().__init__(message)
        self.fits = fits


def compare(
    points: Points,
    forms: Sequence[str] | None = None,
    *,
    objective: Objective = "lsq",
    delta: float = DELTA,
    replicates: int = 1000,
    level: float = 0.9,
    seed: int = 0,
    weigh: Weigh = "backtest",
) -> Comparison:
    """Fit every form, weight them by AICc and select one.

    Runs are weighted by the scatter of seeds for the objective "lsq" only: "linear" is plain least squares, and "huber"
    and "l1" are robust by themselves.

    Args:
        points: The points to fit; their `floor` is the lower bound on E.
        forms: Names of forms; by default all that suit the points.
        objective: The objective to minimise, see `fit`.
        delta: Threshold of "huber".
        replicates: Number of bootstrap replicates.
        level: Coverage of all intervals.
        seed: Seed of the bootstrap.
        weigh: "backtest": forecasts weight forms by how well they extrapolated within the points, and widen beyond them;
            "aicc": by AICc, as if one of the forms were true.

    Raises:
        UserError: A form or the objective is unknown, or the points lack a variable of a form.
        NoLawError: No form could be fitted to these points.
    """
    forms = suitable_forms(points) if forms is None else tuple(forms)
    unknown = sorted(set(forms) - set(LAWS))
    if unknown or not forms:
        raise UserError(f"form {unknown[0] if unknown else ''!r} is unknown; use one of {', '.join(LAWS)}")
    if not 0 < level < 1 or replicates < 1:
        raise UserError(f"level {level!r} must lie between 0 and 1, and replicates {replicates!r} be at least 1")
    scatter = run_weights(points)
    weights = scatter.weights if objective == "lsq" else None
    laws = _bounded(forms, points.floor)
    fits = {form: fit(law, points, objective=objective, delta=delta, weights=weights) for form, law in laws.items()}
    squares = sum_of_squares(fits.values())
    scores = {form: aicc(fitted, points, squares) for form, fitted in fits.items()}
    if not np.isfinite(min(scores.values())):
        raise NoLawError(_no_law(points, fits), fits)
    return Comparison(
        points=points,
        fits=fits,
        aicc=scores,
        weights=akaike_weights(scores),
        best=str(selected({form: np.array([score]) for form, score in scores.items()})[0]),
        scatter=scatter,
        replicates=replicates,
        level=level,
        seed=seed,
        weigh=weigh,
    )


def compare_alike(
    earlier: Comparison, points: Points, forms: Sequence[str], replicates: int | None = None
) -> Comparison:
    """Compare forms on other points with the settings of an earlier comparison; raises the same errors."""
    law = earlier.law
    return compare(
        points,
        forms,
        objective=law.objective,
        delta=law.delta,
        replicates=earlier.replicates if replicates is None else replicates,
        level=earlier.level,
        seed=earlier.seed,
        weigh=earlier.weigh,
    )


def _bounded(forms: Sequence[str], floor: float) -> dict[str, Law]:
    """The laws with a floor of at least `floor`; forms without one are excluded, unless only such were requested."""
    if floor <= 0:
        return {form: LAWS[form] for form in forms}
    with_floor = [form for form in forms if "E" in LAWS[form].parameters] or forms
    return {form: LAWS[form].at_least("E", floor) for form in with_floor}


def suitable_forms(points: Points) -> tuple[str, ...]:
    """The forms that compete by default: surfaces if N and D vary, curves if only one of them does."""
    if not points.axis:
        raise UserError("table: neither N nor D varies; a law needs at least three sizes of one of them")
    if points.axis != "ND":
        return _CURVES
    repeats = points.S is not None and bool(np.any(points.S != points.D))
    return (*SELECTABLE, "data_constrained") if repeats else SELECTABLE


def _with_evaluation(
    intervals: dict[str, Interval], fitted: Fit, evaluation: float, level: float
) -> dict[str, Interval]:
    """Widen the amplitudes' intervals by the error common to all cells from the finite test set.

    Every loss, and so every amplitude, would change by about the same factor on other test spectra. The distances
    from the estimate are added in quadrature, in logarithms.
    """
    if not evaluation:
        return intervals
    common = float(stats.norm.ppf(0.5 + level / 2)) * evaluation
    widened = dict(intervals)
    for name in set(AMPLITUDES) & set(intervals):
        low, high = intervals[name]
        value = fitted.parameters[name]
        if value > 0:
            below = np.hypot(np.log(value / low), common) if low > 0 else np.inf
            above = np.hypot(np.log(max(high, value) / value), common)
            widened[name] = (float(value * np.exp(-below)), float(value * np.exp(above)))
    return widened


def _no_law(points: Points, fits: dict[str, Fit]) -> str:
    reasons = "; ".join(
        f"{form}: {fitted.message if not fitted.usable else f'needs {len(fitted.theta) + FEWEST_LEFT} distinct sizes'}"
        for form, fitted in fits.items()
    )
    return f"table: {len(points)} points support no law ({reasons}); add cells"
