"""Fitting a law to points: global, deterministic, with a typed outcome."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import OptimizeResult, least_squares

from analysis.laws import LAWS, Array, Law
from scaling.errors import UserError

Objective = Literal["lsq", "linear"]
Status = Literal["converged", "bound_hit", "not_identified", "failed"]

_EXPONENTS = np.geomspace(0.02, 3.0, 20)
_FLOORS = np.array([0.0, 0.5, 0.8, 0.95])  # E as a share of the smallest loss, for forms not linear in E
_GAMMAS = np.array([0.25, 0.6, 1.0, 2.0])
_POLISHED = 3  # starts that are followed to their minimum
_AT_BOUND = 1e-6
_SINGULAR = 1e8


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The outcome of one fit.

    Attributes:
        form: name of the law.
        status: "converged"; "bound_hit" (a parameter stands at its bound, named in `message`); "not_identified" (the
            points do not determine the parameters); "failed" (no minimum was found).
        objective: "lsq" (log residuals) or "linear" (plain residuals).
        value: the summed objective, sum of w·r² over the points.
        parameters: name to value, full precision; NaN where there are fewer points than parameters.
        residuals: log(loss) − log(law) of each point (n,), whatever the objective.
        message: what `status` means here, in words.
    """

    form: str
    status: Status
    objective: Objective
    value: float
    parameters: dict[str, float]
    residuals: Array
    message: str

    @property
    def usable(self) -> bool:
        """Whether the law may be used to predict: a minimum was found and it is unique."""
        return self.status in ("converged", "bound_hit")

    def predict(self, N: ArrayLike, D: ArrayLike) -> Array:
        """The law's error at (N, D), broadcast against each other, in the unit of the fitted loss."""
        return LAWS[self.form].predict(self.parameters, N, D)


def fit(
    law: Law,
    N: ArrayLike,
    D: ArrayLike,
    loss: ArrayLike,
    *,
    objective: Objective = "lsq",
    weights: ArrayLike | None = None,
    start: Mapping[str, float] | None = None,
) -> Fit:
    """Fit a law by least squares within its bounds.

    A grid over the exponents, with the amplitudes solved exactly at each node (variable projection), finds the basins;
    the best of them are followed to their minimum by a trust-region solver with the analytic Jacobian. N and D are
    divided by their geometric means meanwhile, which makes amplitudes and exponents nearly independent.

    Args:
        law: the form.
        N: parameters of the model, (n,).
        D: distinct spectra (or tokens), (n,).
        loss: what is fitted, (n,), positive.
        objective: "lsq" minimises Σ w (log L − log law)²; "linear" minimises Σ w (L − law)².
        weights: w, (n,); 1 if not given.
        start: parameters to start from instead of the grid (bootstrap refits); quicker and only local.

    Returns:
        The fit; a problem that cannot be fitted gives a status, not an exception.

    Raises:
        UserError: if the objective is unknown, or the points are not positive, finite and of one length.
    """
    if objective not in get_args(Objective):
        raise UserError(f"objective {objective!r} is unknown; use one of {', '.join(get_args(Objective))}")
    n, d, y, w = _checked(N, D, loss, weights)
    if len(y) <= len(law.parameters):
        return Fit(
            form=law.name,
            status="not_identified",
            objective=objective,
            value=float("nan"),
            parameters=dict.fromkeys(law.parameters, float("nan")),
            residuals=np.full(len(y), np.nan),
            message=f"{len(y)} points cannot determine {len(law.parameters)} parameters",
        )
    scale_n, scale_d = np.exp(np.log(n).mean()), np.exp(np.log(d).mean())
    n, d = n / scale_n, d / scale_d
    if start is None:
        starts, tolerance, limit = list(_best_starts(law, n, d, y, w, objective)), 1e-14, 400
    else:  # a refit need only be exact to its own scatter
        starts, tolerance, limit = [_rescaled(law, law.vector(start), 1 / scale_n, 1 / scale_d)], 1e-7, 60
    if len(starts) > 1:  # roughly first: only the best basin is worth its last digits
        rough = [_polish(law, n, d, y, w, objective, theta, 1e-6, 60) for theta in starts]
        starts = [min(rough, key=lambda result: result.cost).x]
    best = _polish(law, n, d, y, w, objective, starts[0], tolerance, limit)
    status, message = _outcome(law, best, y)
    predicted = law.value(best.x, n, d)
    theta = _rescaled(law, best.x, scale_n, scale_d)
    return Fit(
        form=law.name,
        status=status,
        objective=objective,
        value=2.0 * float(best.cost),
        parameters={name: float(value) for name, value in zip(law.parameters, theta, strict=True)},
        residuals=np.log(y) - np.log(np.maximum(predicted, np.finfo(float).tiny)),
        message=message,
    )


def _checked(N: ArrayLike, D: ArrayLike, loss: ArrayLike, weights: ArrayLike | None) -> tuple[Array, ...]:
    arrays = {"N": np.asarray(N, float), "D": np.asarray(D, float), "loss": np.asarray(loss, float)}
    arrays["weights"] = np.ones_like(arrays["loss"]) if weights is None else np.asarray(weights, float)
    for name, values in arrays.items():
        if values.shape != arrays["loss"].shape or values.ndim != 1:
            raise UserError(f"{name} has shape {values.shape}, loss {arrays['loss'].shape}; give vectors of one length")
        if not np.all(np.isfinite(values) & (values > 0)):
            raise UserError(f"{name} has values that are not positive and finite; remove those points")
    return arrays["N"], arrays["D"], arrays["loss"], arrays["weights"]


def _rescaled(law: Law, theta: Array, scale_n: float, scale_d: float) -> Array:
    """Parameters for N·scale_n and D·scale_d, given those for N and D."""
    index = {name: place for place, name in enumerate(law.parameters)}
    moved = theta.copy()
    moved[index["A"]] *= scale_n ** theta[index["alpha"]]
    moved[index["B"]] *= scale_d ** theta[index["beta"]]
    return moved


def _best_starts(law: Law, n: Array, d: Array, y: Array, w: Array, objective: Objective) -> Iterator[Array]:
    """The deepest distinct basins of the grid, best first. n, d: rescaled, (n,)."""
    root_w = np.sqrt(w) / y if objective == "lsq" else np.sqrt(w)  # log residuals are relative ones, to first order
    found: list[tuple[float, Array]] = []
    if law.name == "chinchilla":
        for cost, alpha, beta, (E, A, B) in _profile(n, d, y, root_w, floor=True):
            found.append((cost, np.array([E, A, alpha, B, beta])))
    else:
        for gamma in _GAMMAS:
            for floor in _FLOORS * y.min():
                inner = (y - floor) ** (1 / gamma)
                # d(law)/d(inner) = gamma·inner^(gamma−1): the residual of the inner sum, seen in the loss
                seen = root_w * gamma * inner ** (gamma - 1)
                cost, alpha, beta, (A, B) = _profile(n, d, inner, seen, floor=False)[0]
                found.append((cost, np.array([floor, A, alpha, B, beta, gamma])))
    found.sort(key=lambda item: item[0])
    return (theta for _, theta in found[:_POLISHED])


def _profile(n: Array, d: Array, y: Array, root_w: Array, *, floor: bool) -> list[tuple[float, float, float, Array]]:
    """Non-negative linear least squares of y on ([1,] n^−alpha, d^−beta) at every node of the exponents' grid.

    Non-negativity is exact: with at most three columns every set of active columns is solved and the best feasible
    one taken.

    Returns:
        (cost, alpha, beta, coefficients) of the grid's local minima, best first; `coefficients` holds (E, A, B) or
        (A, B).
    """
    k = len(_EXPONENTS)
    rows = np.broadcast_to(root_w, (k, len(y)))
    columns_n, columns_d = rows * n ** -_EXPONENTS[:, None], rows * d ** -_EXPONENTS[:, None]
    target = root_w * y
    gram = np.empty((k, k, 3, 3))
    gram[..., 0, 0] = root_w @ root_w
    gram[..., 0, 1] = gram[..., 1, 0] = (columns_n @ root_w)[:, None]
    gram[..., 0, 2] = gram[..., 2, 0] = (columns_d @ root_w)[None, :]
    gram[..., 1, 1] = np.sum(columns_n**2, axis=1)[:, None]
    gram[..., 2, 2] = np.sum(columns_d**2, axis=1)[None, :]
    gram[..., 1, 2] = gram[..., 2, 1] = columns_n @ columns_d.T
    moment = np.empty((k, k, 3))
    moment[..., 0] = root_w @ target
    moment[..., 1] = (columns_n @ target)[:, None]
    moment[..., 2] = (columns_d @ target)[None, :]

    cost = np.full((k, k), np.inf)
    best = np.zeros((k, k, 3))
    for active in ([1, 2], [0, 1, 2], [0, 1], [0, 2], [1], [2], [0]):
        if not floor and 0 in active:
            continue
        block = gram[..., active, :][..., :, active]
        ridge = 1e-13 * np.trace(block, axis1=-2, axis2=-1)[..., None, None] * np.eye(len(active))
        solution = np.linalg.solve(block + ridge, moment[..., active, None])[..., 0]
        here = target @ target - np.sum(solution * moment[..., active], axis=-1)
        better = (solution >= 0).all(axis=-1) & (here < cost)
        cost[better] = here[better]
        best[better] = 0.0
        best[np.ix_(range(k), range(k), active)] = np.where(
            better[..., None], solution, best[np.ix_(range(k), range(k), active)]
        )
    padded = np.pad(cost, 1, constant_values=np.inf)
    around = np.stack([padded[i : i + k, j : j + k] for i in range(3) for j in range(3) if (i, j) != (1, 1)])
    places = np.argwhere(cost <= around.min(axis=0))
    chosen = sorted(
        ((float(cost[i, j]), float(_EXPONENTS[i]), float(_EXPONENTS[j]), best[i, j]) for i, j in places),
        key=lambda item: item[0],
    )
    return [(value, a, b, amplitudes if floor else amplitudes[1:]) for value, a, b, amplitudes in chosen]


def _polish(
    law: Law, n: Array, d: Array, y: Array, w: Array, objective: Objective, start: Array, tolerance: float, limit: int
) -> OptimizeResult:
    """Follow one start to its minimum. Residuals are (law − loss), in logarithms for "lsq"."""
    root_w, log_y = np.sqrt(w), np.log(y)
    tiny = np.finfo(float).tiny

    def residuals(theta: Array) -> Array:
        predicted = law.value(theta, n, d)
        if objective == "linear":
            return root_w * (predicted - y)
        return root_w * (np.log(np.maximum(predicted, tiny)) - log_y)

    def jacobian(theta: Array) -> Array:
        scale = root_w if objective == "linear" else root_w / np.maximum(law.value(theta, n, d), tiny)
        return law.jacobian(theta, n, d) * scale[:, None]

    return least_squares(
        residuals,
        np.clip(start, law.lower, law.upper),
        jacobian,
        bounds=(law.lower, law.upper),
        method="dogbox",
        x_scale="jac",
        ftol=tolerance,
        xtol=tolerance,
        gtol=tolerance,
        max_nfev=limit,
    )


def _outcome(law: Law, result: OptimizeResult, y: Array) -> tuple[Status, str]:
    """The status of a solved fit, with its reason in words."""
    if not np.all(np.isfinite(result.x)) or not np.isfinite(result.cost):
        return "failed", "the solver left the finite numbers"
    if result.status == 0:
        return "failed", f"no minimum after {result.nfev} evaluations"
    value = dict(zip(law.parameters, result.x, strict=True))
    lower, upper = np.array(law.lower), np.array(law.upper)
    size = np.where([name in "EAB" for name in law.parameters], y.min(), 1.0)
    low = result.x - lower <= _AT_BOUND * size
    high = upper - result.x <= _AT_BOUND * size
    words = [
        f"{name} is at its lower bound {bound:g}" for name, bound in zip(_names(law, low), lower[low], strict=True)
    ]
    words += [f"{name} is at its upper bound {b:g}" for name, b in zip(_names(law, high), upper[high], strict=True)]
    if value["A"] <= _AT_BOUND * y.min():
        words.append("so alpha is not determined: the points show no effect of N")
    if value["B"] <= _AT_BOUND * y.min():
        words.append("so beta is not determined: the points show no effect of D")
    if words:
        return "bound_hit", "; ".join(words)
    columns = result.jac / np.maximum(np.linalg.norm(result.jac, axis=0), np.finfo(float).tiny)
    if np.linalg.cond(columns) > _SINGULAR:
        return "not_identified", "several sets of parameters fit equally well: the points do not tell them apart"
    return "converged", "a unique minimum inside the bounds"


def _names(law: Law, chosen: Array) -> list[str]:
    return [name for name, take in zip(law.parameters, chosen, strict=True) if take]
