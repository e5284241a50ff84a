"""Allocation of compute: the compute-optimal path of a law."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.answers.forecast import FAR
from analysis.fitting.fit import Fit
from analysis.intervals.compare import Comparison
from analysis.intervals.profile import Interval
from analysis.laws import LAWS, Array, Law
from analysis.points.cost import SIX_N_D, Cost

_LEAST_RATIO = 0.1
_GRID = 600  # sizes tried per compute budget if the optimum has no closed form


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """The best N and D for each compute budget, by the selected law.

    Attributes:
        table: One row per compute budget: C; N, D, loss, each with its _low and _high.
        exponent: a in N* ∝ C^a; then D* ∝ C^(1 − a).
        interval: Interval of a.
        form: The selected form.
        cost: The definition of C.
        words: The result in one or two sentences.
    """

    table: pd.DataFrame
    exponent: float
    interval: Interval
    form: str
    cost: Cost
    words: str


def compute_optimal(comparison: Comparison, cost: Cost = SIX_N_D) -> Path | None:
    """The N and D with the smallest loss for a compute C = κ N D, and the exponent a in N* ∝ C^a.

    For Chinchilla's form N* = G (C/κ)^(β/(α+β)), G = (αA/(βB))^(1/(α+β)) (Hoffmann et al. 2022, arXiv 2203.15556,
    eq. 4); `gamma`, `kaplan` and `quadrature` have the same kind of optimum. Other forms are minimised numerically, and a is the
    mean slope over the range of C. Intervals are from the bootstrap, with the form selected in each replicate.

    Args:
        comparison: Fits over N and D.
        cost: The cost of a run.

    Returns:
        The path, from the compute of the smallest run to four times that of the largest; None if there is none, see `no_path`.
    """
    if no_path(comparison, cost):
        return None
    runs = cost.per_cell * comparison.points.N * comparison.points.D
    C = np.geomspace(runs.min(), FAR * runs.max(), 25)
    logs = np.log(C / cost.per_cell)
    fitted, replicates = comparison.law, comparison.bootstrap
    size, loss, a = (each[0] for each in _optimum(fitted.law, fitted.theta[None], logs, cost.epochs))
    shape = (len(replicates.chosen), len(C))
    sizes, losses, exponents = np.empty(shape), np.empty(shape), np.empty(shape[0])
    for form in set(replicates.chosen):
        where = replicates.chosen == form
        theta = replicates.draws[form][where]
        sizes[where], losses[where], exponents[where] = _optimum(LAWS[form], theta, logs, cost.epochs)
    columns = {"C": C}
    for name, value, sample in (
        ("N", np.exp(size), np.exp(sizes)),
        ("D", np.exp(logs - size), np.exp(logs - sizes)),
        ("loss", loss, losses),
    ):
        low, high = np.transpose([replicates.interval(column) for column in sample.T])
        columns |= {name: value, f"{name}_low": low, f"{name}_high": high}
    interval = replicates.interval(exponents)
    return Path(
        table=pd.DataFrame(columns),
        exponent=float(a),
        interval=interval,
        form=fitted.form,
        cost=cost,
        words=_path_words(comparison, float(a), interval, cost),
    )


def no_path(comparison: Comparison, cost: Cost) -> str:
    """Why the selected law has no compute-optimal path, as text; empty if it has one."""
    if comparison.points.axis != "ND":
        return "Only one of N and D varies, so there is no compute-optimal path."
    if comparison.points.collinear:
        return "N and D move together in these runs, so that they show no best size for a given compute."
    if second_floor(comparison.law):
        return (
            f"The {comparison.best} law's ratio of N and D has an exponent so near to zero that it is a second floor, "
            "and says nothing of the best size for a given compute."
        )
    if not cost.defined:
        return cost.words
    middle = np.log(comparison.points.N * comparison.points.D).mean(keepdims=True)
    size = _optimum(comparison.law.law, comparison.law.theta[None], middle, cost.epochs)[0][0, 0]
    if not 0 < size < middle[0]:
        return f"The {comparison.best} law has no best size for a given compute: only one of N and D matters in it."
    return ""


def second_floor(fitted: Fit) -> bool:
    """Whether the overfitting term of `ridge` is nearly constant in N/D, a second floor that prevents a split."""
    return fitted.parameters.get("rho", np.inf) < _LEAST_RATIO


def local_exponent(comparison: Comparison, cost: Cost, N: float, D: float) -> float | None:
    """a in N* ∝ C^a at the compute of a run at (N, D), by the selected law; None if there is no path."""
    if no_path(comparison, cost):
        return None
    law, theta = comparison.law.law, comparison.law.theta[None]
    return float(_optimum(law, theta, np.log([N * D]), cost.epochs)[2][0])


def _optimum(law: Law, theta: Array, logs: Array, epochs: float) -> tuple[Array, Array, Array]:
    """log N* (K, m), the loss there (K, m) and a (K,), for parameters (K, p) and log(C/κ) (m,); N, D ≥ 1."""
    if law.powers is None:
        ends = np.append(logs, [logs.min() - np.log(2.0), logs.max() + np.log(2.0)])
        size = np.stack([_searched(law, theta, each, epochs) for each in ends], axis=1)
        exponent = (size[:, -1] - size[:, -2]) / (ends[-1] - ends[-2])
        size = size[:, :-2]
    else:
        A, alpha, B, beta = law.powers(theta)
        with np.errstate(divide="ignore", invalid="ignore"):
            log_ratio = np.log(alpha * A) - np.log(beta * B)
        exponent = beta / (alpha + beta)
        size = np.clip((log_ratio[:, None] + beta[:, None] * logs) / (alpha + beta)[:, None], 0.0, logs)
    loss = np.empty(size.shape)
    for row, parameters in enumerate(theta):
        loss[row] = law.value(parameters, _at(law, size[row], logs - size[row], epochs))
    return size, loss, exponent


def _at(law: Law, size: Array, data: Array, epochs: float) -> Array:
    """The law's variables (v, n) at log N and log D."""
    return np.stack([size, data] + ([data + np.log(epochs)] if "S" in law.variables else []))


def _searched(law: Law, theta: Array, log_product: float, epochs: float) -> Array:
    """log N (K,) of the smallest loss for given log N + log D: the best grid point, refined by a parabola."""
    size = np.linspace(0.0, log_product, _GRID)
    with np.errstate(over="ignore"):
        loss = law.value(theta, _at(law, size, log_product - size, epochs))
    best = np.argmin(loss, axis=1)
    inner = np.clip(best, 1, _GRID - 2)
    left, middle, right = (loss[np.arange(len(loss)), inner + step] for step in (-1, 0, 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        shift = np.where(best == inner, 0.5 * (left - right) / (left - 2 * middle + right), best - inner)
    return size[inner] + np.nan_to_num(np.clip(shift, -1, 1)) * (size[1] - size[0])


def _path_words(comparison: Comparison, a: float, interval: Interval, cost: Cost) -> str:
    low, high = interval
    words = (
        f"For the smallest error at a given compute N grows as C^a with a in [{low:.3f}, {high:.3f}] "
        f"({100 * comparison.level:g} %), best {a:.3f}, and D as C^(1 − a). "
    )
    if comparison.law.law.powers is None:
        words += f"In the {comparison.best} form a changes with C; this is its mean over the range shown. "
    if low <= 0.5 <= high:
        words += "Growing N and D in proportion (a = 0.5) agrees with the runs. "
    return words + cost.words + "."
