"""Which form, and was it right: AICc weights, lack of fit, and the score of a forecast on held-out cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from analysis.fit import Fit, Objective, fit
from analysis.intervals import Bootstrap, bootstrap
from analysis.laws import LAWS
from analysis.table import Points
from scaling.errors import UserError

UNLIKELY = 0.05
"""A count inside the intervals less likely than this, were the intervals right, is called a failed forecast."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Several forms fitted to the same points.

    Attributes:
        points: what was fitted.
        fits: form to its fit, in the order asked for, whatever the outcome.
        aicc: form to its corrected Akaike criterion; infinite where the form is not usable.
        weights: form to its Akaike weight; they add up to 1 over the usable forms.
        best: the form with the largest weight.
        bootstrap: the replicates of the usable forms.
    """

    points: Points
    fits: dict[str, Fit]
    aicc: dict[str, float]
    weights: dict[str, float]
    best: str
    bootstrap: Bootstrap

    @property
    def law(self) -> Fit:
        """The fit of the best form."""
        return self.fits[self.best]


class NoLawError(UserError):
    """No form could be fitted and weighed on these points; `fits` holds the outcome of each."""

    def __init__(self, message: str, fits: dict[str, Fit]) -> None:
        super().__init__(message)
        self.fits = fits


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """The score of a forecast.

    Attributes:
        table: one row a held-out cell: N, D, observed, predicted, low, high, inside, flags.
        inside: how many lie within their interval.
        mean_abs_log_error: mean |log(observed/predicted)|.
        words: the verdict in a sentence or two.
    """

    table: pd.DataFrame
    inside: int
    mean_abs_log_error: float
    words: str


def aicc(fitted: Fit, points: Points) -> float:
    """Corrected Akaike criterion of a least-squares fit (Hurvich & Tsai 1989); infinite if unusable.

    The scatter counts as one more parameter: k = p + 1. The sample size is the number of distinct (N, D): seeds of one
    cell share whatever the form gets wrong there, so they must not count as independent evidence for it.
    """
    k, n = len(fitted.parameters) + 1, _distinct(points.N, points.D)
    if not fitted.usable or n <= k + 1:
        return float("inf")
    variance = max(fitted.value / len(points), np.finfo(float).tiny)
    return float(n * np.log(variance) + 2 * k + 2 * k * (k + 1) / (n - k - 1))


def _distinct(N: np.ndarray, D: np.ndarray) -> int:
    return len(np.unique(np.stack([N, D]), axis=1).T)


def akaike_weights(scores: dict[str, float]) -> dict[str, float]:
    """exp(−Δ/2), normalised; forms with an infinite score get 0."""
    values = np.array(list(scores.values()))
    relative = np.exp(-0.5 * (values - values.min()))
    return {form: float(weight) for form, weight in zip(scores, relative / relative.sum(), strict=True)}


def compare(
    points: Points,
    forms: Sequence[str] = tuple(LAWS),
    *,
    objective: Objective = "lsq",
    replicates: int = 1000,
    level: float = 0.9,
    seed: int = 0,
) -> Comparison:
    """Fit every form, weigh them by AICc and bootstrap the usable ones.

    Raises:
        UserError: if a form is unknown.
        NoLawError: if no form could be fitted to these points.
    """
    unknown = sorted(set(forms) - set(LAWS))
    if unknown:
        raise UserError(f"form {unknown[0]!r} is unknown; use one of {', '.join(LAWS)}")
    fits = {form: fit(LAWS[form], points.N, points.D, points.loss, objective=objective) for form in forms}
    scores = {form: aicc(fitted, points) for form, fitted in fits.items()}
    if not np.isfinite(min(scores.values())):
        reasons = "; ".join(
            f"{form}: {fitted.message if not fitted.usable else f'needs {len(fitted.parameters) + 3} distinct sizes'}"
            for form, fitted in fits.items()
        )
        raise NoLawError(f"table: {len(points)} points support no law ({reasons}); add cells", fits)
    weights = akaike_weights(scores)
    usable = [form for form in forms if np.isfinite(scores[form])]
    replicated = bootstrap(
        points,
        {form: fits[form] for form in usable},
        {form: weights[form] for form in usable},
        replicates=replicates,
        level=level,
        seed=seed,
    )
    return Comparison(
        points=points, fits=fits, aicc=scores, weights=weights, best=replicated.best, bootstrap=replicated
    )


def lack_of_fit(comparison: Comparison) -> dict[str, float] | None:
    """F-test of the best form against the scatter between seeds of the same cell (pure error), in log loss.

    Returns:
        F, its two degrees of freedom and p; None unless cells have repeats to spare.
    """
    fitted, points = comparison.law, comparison.points
    cells = pd.Series(fitted.residuals).groupby([points.N, points.D])
    pure = float(((fitted.residuals - cells.transform("mean")) ** 2).sum())
    m, n, p = cells.ngroups, len(points), len(fitted.parameters)
    if n - m < m / 2 or m <= p or pure == 0:
        return None
    ratio = ((float(np.sum(fitted.residuals**2)) - pure) / (m - p)) / (pure / (n - m))
    return {"F": ratio, "dof_lack": m - p, "dof_pure": n - m, "p": float(stats.f.sf(ratio, m - p, n - m))}


def held_out_score(comparison: Comparison, held: Points | pd.DataFrame) -> HeldOut:
    """Score the forecast of cells that took no part in the fit.

    Args:
        comparison: fitted without them.
        held: their N, D and loss: `Points`, or a frame of cells (`num_params`, `num_spectra`, `test_mae_dex`).
    """
    if isinstance(held, Points):
        n, d, observed = held.N, held.D, held.loss
    else:
        n, d, observed = (held[name].to_numpy(float) for name in ("num_params", "num_spectra", "test_mae_dex"))
    table = comparison.bootstrap.forecast(n, d).rename(columns={"value": "predicted"})
    table.insert(2, "observed", observed)
    table["inside"] = (table["low"] <= observed) & (observed <= table["high"])
    inside = int(table["inside"].sum())
    error = np.log(observed / table["predicted"].to_numpy())
    return HeldOut(
        table=table,
        inside=inside,
        mean_abs_log_error=float(np.abs(error).mean()),
        words=_verdict(inside, error, _distinct(n, d), comparison.bootstrap.level),
    )


def _verdict(inside: int, error: np.ndarray, cells: int, level: float) -> str:
    count = len(error)
    words = (
        f"{inside} of the {count} held-out runs lie within their {100 * level:g} % interval "
        f"(about {level * count:.0f} expected); the forecast misses by {100 * np.abs(error).mean():.0f} % on average."
    )
    if inside < count / 2:
        words += " The forecast failed: most held-out runs fall outside, so do not plan with this law."
    elif stats.binom.cdf(inside / count * cells, cells, level) < UNLIKELY:  # seeds of a cell fall together
        words += " That is fewer than chance allows: the intervals are too narrow for this extrapolation."
    bias = float(error.mean())
    if count > 1 and abs(bias) > 0.03 and abs(bias) > 0.7 * np.abs(error).mean():
        side = "lower (better)" if bias < 0 else "higher (worse)"
        words += f" The errors are one-sided: the runs came out {100 * abs(np.expm1(bias)):.0f} % {side} than forecast."
    return words
