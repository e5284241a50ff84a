"""Selection of a form: the corrected Akaike criterion over cells, and a parsimony rule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from analysis.fitting.fit import Fit
from analysis.fitting.likelihood import cell_means
from analysis.laws import LAWS, Array
from analysis.points.table import Points

PARSIMONY = 4.0
"""A form with more parameters is selected only if its AICc is lower by more than this than that of a simpler form.

AICc alone would accept a needless parameter in one study of six (χ² with one degree of freedom above 2), for each of the five
forms that compete this way. With 4 a form must gain χ² > 6, which happens by chance in 1.4 % of studies, or somewhat more
often if a break may be placed anywhere: about 5 % over all forms (`benchmarks/coverage.md`). A larger threshold
would reject too many forms that are right."""

FEWEST_LEFT = 2
"""Minimum degrees of freedom, cells − parameters, for a form to compete."""

_EXACT = 1e-18  # smaller mean objectives are rounding errors, which must not decide between forms


def aicc(fitted: Fit, points: Points, squares: bool | None = None) -> float:
    """Corrected Akaike criterion (Hurvich & Tsai 1989); infinite if unusable or with too few degrees of freedom.

    The scatter counts as one more parameter: k = p + 1. The sample consists of the m cells, since seeds of one cell share
    the form's misfit there. Residuals are assumed normal for "lsq" and "linear", and Laplacian for
    "huber" and "l1". The correction's denominator m − k − 1 is at least 1, so that a form with two degrees of freedom
    left can be selected, if by a wide margin. `squares` is `sum_of_squares` of all forms that are compared.
    """
    m, p = int(points.groups.max()) + 1, len(fitted.theta)
    if not fitted.usable or m < p + FEWEST_LEFT:
        return float("inf")
    value = _between_cells(fitted, points) if fitted.objective in ("lsq", "linear") else fitted.value
    return float(criterion(np.array([value]), fitted, m, sum_of_squares([fitted]) if squares is None else squares)[0])


def sum_of_squares(fits: Iterable[Fit]) -> bool:
    """Whether the objective of these fits is quadratic rather than absolute for most runs.

    "huber" is classified by the usable form that lies closest to the runs, for all forms alike, because criteria of two
    different likelihoods are not comparable.
    """
    usable = [fitted for fitted in fits if fitted.usable]
    if not usable or usable[0].objective != "huber":
        return bool(usable) and usable[0].objective in ("lsq", "linear")
    return usable[0].delta >= min(float(np.median(np.abs(fitted.residuals))) for fitted in usable)


def _between_cells(fitted: Fit, points: Points) -> float:
    """The sum of squares minus the scatter of seeds within cells."""
    cells = cell_means(points, fitted.weights, fitted.objective == "linear")
    within = cells.pure_error * cells.dof_pure if cells.dof_pure else 0.0
    return max(fitted.value - within, 0.0)


def criterion(values: Array, fitted: Fit, m: int, squares: bool) -> Array:
    """AICc from values of the objective (K,), a sum of squares or of absolute values, over m cells."""
    k = len(fitted.theta) + 1
    likelihood_term = (1 if squares else 2) * m * np.log(np.maximum(values / m, _EXACT))
    return likelihood_term + 2 * k + 2 * k * (k + 1) / max(m - k - 1, 1)


def selected(scores: Mapping[str, Array]) -> NDArray[np.str_]:
    """The form with the fewest parameters among those within `PARSIMONY` of the lowest AICc; in a tie the lowest AICc.

    Args:
        scores: Maps each form to its AICc, (K,).

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
