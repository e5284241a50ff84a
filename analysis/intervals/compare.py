"""Which form: fits of all that suit the points, weighed by AICc, selected with parsimony, each with its intervals."""

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
        points: what was fitted.
        fits: form to its fit, in the order asked for, whatever the outcome.
        aicc: form to its corrected Akaike criterion; infinite where the form is not usable.
        weights: form to its Akaike weight; they add up to 1 over the usable forms.
        best: the selected form: the simplest whose AICc is within `PARSIMONY` of the lowest.
        scatter: how much each run counts, and why.
        replicates: of the bootstrap.
        level: coverage of all intervals.
        seed: of the bootstrap.
        weigh: what forecasts weigh forms by.
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
        """The forms that compete: their fit is usable, with cells to spare."""
        return {form: fitted for form, fitted in self.fits.items() if np.isfinite(self.aicc[form])}

    @property
    def interval_method(self) -> Literal["profile", "bootstrap"]:
        """Where intervals come from: profiles for the objectives "lsq" and "linear", else the bootstrap."""
        return "profile" if self.law.objective in ("lsq", "linear") else "bootstrap"

    @property
    def evaluation(self) -> float:
        """Relative standard error of the loss from the finite test set, common to all cells; 0 if unknown."""
        sem, loss = self.points.sem, self.points.loss
        return 0.0 if sem is None else float(np.sqrt(np.nanmean((sem / loss) ** 2)))

    @cached_property
    def likelihoods(self) -> dict[str, Likelihood]:
        """Usable form to its sum of squares about the minimum; empty for "huber" and "l1"."""
        if self.interval_method == "bootstrap":
            return {}
        return {form: likelihood(fitted, self.points) for form, fitted in self.usable.items()}

    @cached_property
    def bootstrap(self) -> Bootstrap:
        """Replicates of the usable forms."""
        m, squares = int(self.points.groups.max()) + 1, sum_of_squares(self.fits.values())

        def select(values: Mapping[str, Array]) -> NDArray[np.str_]:
            return selected({form: criterion(each, self.fits[form], m, squares) for form, each in values.items()})

        return bootstrap(self.points, self.usable, select, replicates=self.replicates, level=self.level, seed=self.seed)

    @cached_property
    def law_intervals(self) -> dict[str, Interval]:
        """Parameter of the selected form to (low, high)."""
        return self._intervals(self.best)

    @cached_property
    def intervals(self) -> dict[str, dict[str, Interval]]:
        """Usable form to parameter to (low, high)."""
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
        """What forecasts are made of: weights of the usable forms, and how the error grows beyond the points."""
        if self.weigh == "aicc":
            weights = {form: self.weights[form] for form in self.usable}
            return Extrapolation(splits=[], weights=weights, growth=0.0, dof=np.inf)
        return extrapolation(self.points, self.usable, self.aicc)


class NoLawError(UserError):
    """No form could be fitted and weighed on these points; `fits` holds the outcome of each."""

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
    """Fit every form, weigh them by AICc and select one.

    Runs are weighted by the scatter of seeds for the objective "lsq" only: "linear" is plain least squares, and "huber"
    and "l1" are robust as they are.

    Args:
        points: what is fitted; their `floor` bounds E from below.
        forms: names of forms; all that suit the points if not given.
        objective: what is minimised, see `fit`.
        delta: of "huber".
        replicates: of the bootstrap.
        level: coverage of all intervals.
        seed: of the bootstrap.
        weigh: "backtest": forecasts weigh forms by how they extrapolated within the points, and widen beyond them; "aicc": by
            AICc, as if one of the forms were true.

    Raises:
        UserError: if a form or the objective is unknown, or the points lack a variable of a form.
        NoLawError: if no form could be fitted to these points.
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
    """Compare forms on other points in the way of an earlier comparison; the same errors are raised."""
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
    """The laws, with a floor of at least this; forms without a floor are left out, unless they are all that was asked for."""
    if floor <= 0:
        return {form: LAWS[form] for form in forms}
    with_floor = [form for form in forms if "E" in LAWS[form].parameters] or forms
    return {form: LAWS[form].at_least("E", floor) for form in with_floor}


def suitable_forms(points: Points) -> tuple[str, ...]:
    """The forms that compete by default: surfaces where N and D vary, curves where one of them does."""
    if not points.axis:
        raise UserError("table: neither N nor D varies; a law needs at least three sizes of one of them")
    if points.axis != "ND":
        return _CURVES
    repeats = points.S is not None and bool(np.any(points.S != points.D))
    return (*SELECTABLE, "data_constrained") if repeats else SELECTABLE


def _with_evaluation(
    intervals: dict[str, Interval], fitted: Fit, evaluation: float, level: float
) -> dict[str, Interval]:
    """Widen the amplitudes' intervals by the error that the finite test set gives all cells in common.

    Every loss, and so every amplitude, would change by about the same factor on other test spectra: the distances
    from the estimate add in quadrature, in logarithms.
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
