"""Which form: fits of all that suit the points, weighed by AICc, selected with parsimony, each with its intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from analysis.bootstrap import Bootstrap, bootstrap
from analysis.checks import EdgeScore, LackOfFit, edge_scores, lack_of_fit
from analysis.fit import DELTA, Fit, fit
from analysis.laws import LAWS, SELECTABLE, Array
from analysis.profile import Interval, Likelihood, cell_means, likelihood, parameter_intervals
from analysis.solve import Objective
from analysis.table import Points
from analysis.weights import Weights, run_weights
from scaling.errors import UserError

PARSIMONY = 6.0
"""A form with more parameters is selected only if its AICc is lower by more than this than that of a simpler form.

AICc itself would take a needless parameter in one study of six for each that competes (χ² with one degree of freedom
above 2); several forms with up to two compete here. With 6, a needless parameter must gain χ² > 8, which chance gives in
less than 1 % of studies, and in a few % where a break may be placed anywhere (`benchmarks/coverage.md`)."""

_CURVES = ("m1", "m2", "m3")
_FEWEST_LEFT = 2  # degrees of freedom


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Several forms fitted to the same points.

    Attributes:
        points: what was fitted.
        fits: form to its fit, in the order asked for, whatever the outcome.
        aicc: form to its corrected Akaike criterion; infinite where the form is not usable.
        weights: form to its Akaike weight; they add up to 1 over the usable forms.
        best: the selected form: the simplest whose AICc is within `PARSIMONY` of the lowest.
        level: coverage of all intervals.
        seed: of the bootstrap.
        interval_method: "profile" for the objectives "lsq" and "linear", "bootstrap" for "huber" and "l1".
        intervals: form to parameter to (low, high), for usable forms.
        likelihoods: form to its sum of squares about the minimum; empty for "huber" and "l1".
        bootstrap: replicates of the usable forms.
        scatter: how much each run counts, and why.
        evaluation: relative standard error of the loss from the finite test set, common to all cells; 0 if unknown.
        lack_of_fit: of the selected form; None without enough repeats.
        edge: form to how well it predicts the largest N and D from the others; forms that cannot are left out.
    """

    points: Points
    fits: dict[str, Fit]
    aicc: dict[str, float]
    weights: dict[str, float]
    best: str
    level: float
    seed: int
    interval_method: Literal["profile", "bootstrap"]
    intervals: dict[str, dict[str, Interval]]
    likelihoods: dict[str, Likelihood]
    bootstrap: Bootstrap
    scatter: Weights
    evaluation: float
    lack_of_fit: LackOfFit | None
    edge: dict[str, EdgeScore]

    @property
    def law(self) -> Fit:
        """The fit of the selected form."""
        return self.fits[self.best]


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
) -> Comparison:
    """Fit every form, weigh them by AICc, select one and find the intervals of all.

    Runs are weighted by the scatter of seeds for the objective "lsq" only: "linear" is plain least squares, and "huber"
    and "l1" are robust as they are.

    Args:
        points: what is fitted.
        forms: names of forms; all that suit the points if not given.
        objective: what is minimised, see `fit`.
        delta: of "huber".
        replicates: of the bootstrap.
        level: coverage of all intervals.
        seed: of the bootstrap.

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
    fits = {form: fit(LAWS[form], points, objective=objective, delta=delta, weights=weights) for form in forms}
    scores = {form: aicc(fitted, points) for form, fitted in fits.items()}
    usable = {form: fitted for form, fitted in fits.items() if np.isfinite(scores[form])}
    if not usable:
        raise NoLawError(_no_law(points, fits), fits)
    best = selected({form: np.array([score]) for form, score in scores.items()})[0]
    samples = bootstrap(points, usable, _Reselection(points, usable), replicates=replicates, level=level, seed=seed)
    squares = objective in ("lsq", "linear")
    likelihoods = {form: likelihood(fitted, points) for form, fitted in usable.items()} if squares else {}
    evaluation = 0.0 if points.sem is None else float(np.sqrt(np.nanmean((points.sem / points.loss) ** 2)))
    intervals = {}
    for form, fitted in usable.items():
        if squares:
            found = parameter_intervals(likelihoods[form], level)
        else:
            found = {name: samples.interval(draws) for name, draws in zip(fitted.law.parameters, samples.draws[form].T)}
        intervals[form] = _with_evaluation(found, fitted, evaluation, level)
    return Comparison(
        points=points,
        fits=fits,
        aicc=scores,
        weights=akaike_weights(scores),
        best=best,
        level=level,
        seed=seed,
        interval_method="profile" if squares else "bootstrap",
        intervals=intervals,
        likelihoods=likelihoods,
        bootstrap=samples,
        scatter=scatter,
        evaluation=evaluation,
        lack_of_fit=lack_of_fit(fits[best], points),
        edge=edge_scores(usable, points, level),
    )


def suitable_forms(points: Points) -> tuple[str, ...]:
    """The forms that compete by default: surfaces where N and D vary, curves where one of them does."""
    if not points.axis:
        raise UserError("table: neither N nor D varies; a law needs at least three sizes of one of them")
    if points.axis != "ND":
        return tuple(name for name in _CURVES if name in LAWS)
    repeats = points.S is not None and bool(np.any(points.S != points.D)) and "data_constrained" in LAWS
    return (*SELECTABLE, "data_constrained") if repeats else SELECTABLE


def aicc(fitted: Fit, points: Points) -> float:
    """Corrected Akaike criterion (Hurvich & Tsai 1989); infinite if the fit is unusable or too few cells are left.

    The scatter counts as one more parameter: k = p + 1. The sample is the cells, m of them: seeds of one cell share
    whatever the form gets wrong there. Residuals are taken as normal for "lsq" and "linear", and as Laplace's for
    "huber" and "l1". The correction's denominator m − k − 1 is at least 1, so that a form with two degrees of freedom
    left can be selected, by a wide margin.
    """
    m, p = int(points.groups.max()) + 1, len(fitted.theta)
    if not fitted.usable or m < p + _FEWEST_LEFT:
        return float("inf")
    if fitted.objective in ("lsq", "linear"):
        value = _between_cells(fitted, points)
    else:
        value = fitted.value
    return float(_aicc(np.array([value]), fitted, m)[0])


def _between_cells(fitted: Fit, points: Points) -> float:
    """The sum of squares without the scatter of seeds within cells."""
    cells = cell_means(points, fitted.weights, fitted.objective == "linear")
    within = cells.pure_error * cells.dof_pure if cells.dof_pure else 0.0
    return max(fitted.value - within, 0.0)


def _aicc(values: Array, fitted: Fit, m: int) -> Array:
    """From values of the objective (K,), over m cells."""
    k = len(fitted.theta) + 1
    power = 1.0 if fitted.objective in ("lsq", "linear") else 2.0
    likelihood_term = power * m * np.log(np.maximum(values, np.finfo(float).tiny) / m)
    return likelihood_term + 2 * k + 2 * k * (k + 1) / max(m - k - 1, 1)


def selected(scores: Mapping[str, Array]) -> NDArray[np.str_]:
    """The form with the fewest parameters among those within `PARSIMONY` of the lowest AICc; of equals the lowest.

    Args:
        scores: form to AICc, (K,).

    Returns:
        The selected form of each, (K,).
    """
    names = np.array(list(scores))
    values = np.stack([scores[form] for form in names])
    sizes = np.array([[len(LAWS[form].parameters)] for form in names])
    near = values <= values.min(axis=0) + PARSIMONY
    fewest = np.where(near, sizes, np.inf).min(axis=0)
    return names[np.argmin(np.where(near & (sizes == fewest), values, np.inf), axis=0)]


@dataclass(frozen=True, slots=True)
class _Reselection:
    """Selects a form in each replicate of a bootstrap."""

    points: Points
    fits: dict[str, Fit]

    def __call__(self, values: Mapping[str, Array]) -> NDArray[np.str_]:
        m = int(self.points.groups.max()) + 1
        return selected({form: _aicc(values[form], fitted, m) for form, fitted in self.fits.items()})


def akaike_weights(scores: Mapping[str, float]) -> dict[str, float]:
    """exp(−Δ/2), normalised (Burnham & Anderson 2002, ch. 2.9); forms with an infinite score get 0."""
    values = np.array(list(scores.values()))
    relative = np.exp(-0.5 * (values - values.min()))
    return {form: float(weight) for form, weight in zip(scores, relative / relative.sum(), strict=True)}


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
    for name in {"E", "A", "B", "R", "E0"} & set(intervals):
        low, high = intervals[name]
        value = fitted.parameters[name]
        if value > 0:
            below = np.hypot(np.log(value / low), common) if low > 0 else np.inf
            above = np.hypot(np.log(max(high, value) / value), common)
            widened[name] = (float(value * np.exp(-below)), float(value * np.exp(above)))
    return widened


def _no_law(points: Points, fits: dict[str, Fit]) -> str:
    reasons = "; ".join(
        f"{form}: {fitted.message if not fitted.usable else f'needs {len(fitted.theta) + _FEWEST_LEFT} distinct sizes'}"
        for form, fitted in fits.items()
    )
    return f"table: {len(points)} points support no law ({reasons}); add cells"
