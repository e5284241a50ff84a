"""Definition of a functional form: its parameters, value and derivatives, and starting points for a fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

Powers = Callable[[Array], tuple[Array, Array, Array, Array]]

SMALLEST_EXPONENT, LARGEST_EXPONENT = 1e-3, 3.0
TINY = 1e-300  # keeps log and division finite where a term vanishes


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """One functional form, with everything a solver needs.

    Functions take a batch of parameter vectors `theta` (..., p) and the natural logarithms of the variables, `logs`
    (v, n), one row per variable. Solvers first subtract each variable's mean logarithm, which makes amplitudes and
    exponents nearly independent.

    Attributes:
        name: Key in `LAWS`.
        formula: The form as a readable formula.
        source: The paper and equation.
        variables: ("N", "D"), with "S" (samples seen) for laws of repeated data, or ("x",) for curves of one variable.
        meaning: Maps each parameter to its meaning, as text; in the order of every parameter vector.
        lower: Lower bound of each parameter.
        upper: Upper bound of each parameter.
        value: (theta (..., p), logs (v, n)) -> loss (..., n), in the unit of the fitted column.
        jacobian: The same arguments -> derivatives (..., p, n).
        starts: (logs (v, n) centred, loss (n,)) -> parameter vectors (k, p) from which minimisation starts.
        shifted: (theta (..., p), offsets (v,)) -> the parameters of the same curve over logs + offsets.
        powers: (theta (k, p)) -> A, alpha, B, beta, each (k,), such that the loss increases with A/N^alpha + B/D^beta; None
            if it is not a function of such a sum. It gives the compute-optimal path in closed form.
        together: Whether capacity and data interact, so that the gain from either depends on the other.
        note: Remarks on interpreting the parts of the error under this form.
    """

    name: str
    formula: str
    source: str
    variables: tuple[str, ...]
    meaning: Mapping[str, str]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    value: Callable[[Array, Array], Array]
    jacobian: Callable[[Array, Array], Array]
    starts: Callable[[Array, Array], Array]
    shifted: Callable[[Array, Array], Array]
    powers: Powers | None = None
    together: bool = False
    note: str = ""

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names, in the order of every parameter vector."""
        return tuple(self.meaning)

    def at_least(self, name: str, value: float) -> Law:
        """The same form with a larger lower bound on a parameter independent of the variables' units, such as E."""
        low = [
            max(each, value) if given == name else each for given, each in zip(self.parameters, self.lower, strict=True)
        ]
        return replace(self, lower=tuple(low))

    def middle(self, logs: Array) -> Array:
        """Mean logarithms (v,) for centring; S is compared with D, so it is centred by D's mean."""
        means = logs.mean(axis=1)
        return means[[0, 1, 1]] if "S" in self.variables else means

    def vector(self, parameters: Mapping[str, float]) -> Array:
        """Convert named parameters to the vector (p,) for `value` and `jacobian`."""
        return np.array([parameters[name] for name in self.parameters])

    def predict(self, parameters: Mapping[str, float], *variables: ArrayLike) -> Array:
        """The loss for named parameters at the given variables (not logarithms), broadcast against each other."""
        arrays = np.broadcast_arrays(*(np.asarray(values, float) for values in variables))
        logs = np.log(np.stack([array.ravel() for array in arrays]))
        return self.value(self.vector(parameters), logs).reshape(arrays[0].shape)


def columns(theta: Array) -> tuple[Array, ...]:
    """Each parameter of a batch (..., p) as (..., 1), for broadcasting against points (n,)."""
    return tuple(theta[..., place, None] for place in range(theta.shape[-1]))


def powers_at(*places: int) -> Powers:
    """`Law.powers` of a form whose parameters A, alpha, B and beta have these indices in its vector."""
    A, alpha, B, beta = places
    return lambda theta: (theta[:, A], theta[:, alpha], theta[:, B], theta[:, beta])
