"""Which form: fits of all that suit the points, weighed by AICc, selected with parsimony, each with its intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
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

PARSIMONY = 4.0
"""A form with more parameters is selected only if its AICc is lower by more than this than that of a simpler form.

AICc itself would take a needless parameter in one study of six (χ² with one degree of freedom above 2), for each such
form that competes, and five do. With 4 it must gain χ² > 6, which chance gives in 1.4 % of studies, or somewhat more
often where a break may be placed anywhere: about 5 % over all forms (`benchmarks/coverage.md`). A larger threshold
would refuse too many forms that are right."""

_CURVES = ("m1", "m2", "m3")
_FEWEST_LEFT = 2  # degrees of freedom


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Several forms fitted to the same points. What takes long is reckoned when it is first asked for.

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
        m = int(self.points.groups.max()) + 1

        def select(values: Mapping[str, Array]) -> NDArray[np.str_]:
            return selected({form: _criterion(each, self.fits[form], m) for form, each in values.items()})

        return bootstrap(self.points, self.usable, select, replicates=self.replicates, level=self.level, seed=self.seed)

    @cached_property
    def intervals(self) -> dict[str, dict[str, Interval]]:
        """Usable form to parameter to (low, high)."""
        found = {}
        for form, fitted in self.usable.items():
            if self.interval_method == "profile":
                own = parameter_intervals(self.likelihoods[form], self.level)
            else:
                columns = self.bootstrap.draws[form].T
                own = dict(zip(fitted.law.parameters, map(self.bootstrap.interval, columns), strict=True))
            found[form] = _with_evaluation(own, fitted, self.evaluation, self.level)
        return found

    @cached_property
    def lack_of_fit(self) -> LackOfFit | None:
        """Of the selected form; None without enough repeats."""
        return lack_of_fit(self.law, self.points)

    @cached_property
    def edge(self) -> dict[str, EdgeScore]:
        """Usable form to how well it predicts the largest N and D from the rest; forms that cannot are left out."""
        return edge_scores(self.usable, self.points, self.level)


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
    """Fit every form, weigh them by AICc and select one.

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
    value = _between_cells(fitted, points) if fitted.objective in ("lsq", "linear") else fitted.value
    return float(_criterion(np.array([value]), fitted, m)[0])


def _between_cells(fitted: Fit, points: Points) -> float:
    """The sum of squares without the scatter of seeds within cells."""
    cells = cell_means(points, fitted.weights, fitted.objective == "linear")
    within = cells.pure_error * cells.dof_pure if cells.dof_pure else 0.0
    return max(fitted.value - within, 0.0)


def _criterion(values: Array, fitted: Fit, m: int) -> Array:
    """AICc from values of the objective (K,), over m cells."""
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
