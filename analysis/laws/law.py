"""What a functional form is: a name, its parameters, its value and derivatives, and where a search may start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

Powers = Callable[[Array], tuple[Array, Array, Array, Array]]

SMALLEST_EXPONENT, LARGEST_EXPONENT = 1e-3, 3.0
TINY = 1e-300  # keeps log and division finite where a term has vanished


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """One functional form, with what a solver needs of it.

    Functions take a batch of parameter vectors `theta` (..., p) and the natural logarithms of the variables, `logs`
    (v, n), one line a variable: solvers subtract the variables' means of logarithms first, which makes amplitudes and
    exponents nearly independent.

    Attributes:
        name: key in `LAWS`.
        formula: the form in words of mathematics, for people.
        source: the paper and equation.
        variables: ("N", "D"), with "S" (samples seen) for laws of repeated data, or ("x",) for curves of one variable.
        meaning: parameter to what it stands for, in words; its order is that of every parameter vector.
        lower: lower bound of each parameter.
        upper: upper bound of each parameter.
        value: (theta (..., p), logs (v, n)) -> loss (..., n), in the unit of the fitted column.
        jacobian: the same arguments -> derivatives (..., p, n).
        starts: (logs (v, n) centred, loss (n,)) -> parameter vectors (k, p) from which a minimum is sought.
        shifted: (theta (..., p), offsets (v,)) -> the parameters of the same curve over logs + offsets.
        powers: (theta (k, p)) -> A, alpha, B, beta, each (k,), of the sum A/N^alpha + B/D^beta with which the loss rises; None
            where it is no function of such a sum. It gives the compute-optimal path in closed form.
        together: whether capacity and data act together, so that what either saves depends on the other.
        note: what to know when reading the parts of the error by this form.
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
        """The same form with a larger lower bound of a parameter that does not depend on the variables' units, such as E."""
        low = [
            max(each, value) if given == name else each for given, each in zip(self.parameters, self.lower, strict=True)
        ]
        return replace(self, lower=tuple(low))

    def middle(self, logs: Array) -> Array:
        """Means of the logarithms (v,), by which they are centred; S is compared with D, so it is centred with D."""
        means = logs.mean(axis=1)
        return means[[0, 1, 1]] if "S" in self.variables else means

    def vector(self, parameters: Mapping[str, float]) -> Array:
        """Named parameters as the vector (p,) that `value` and `jacobian` take."""
        return np.array([parameters[name] for name in self.parameters])

    def predict(self, parameters: Mapping[str, float], *variables: ArrayLike) -> Array:
        """The loss at the given variables (not logarithms), broadcast against each other, for named parameters."""
        arrays = np.broadcast_arrays(*(np.asarray(values, float) for values in variables))
        logs = np.log(np.stack([array.ravel() for array in arrays]))
        return self.value(self.vector(parameters), logs).reshape(arrays[0].shape)


def columns(theta: Array) -> tuple[Array, ...]:
    """Each parameter of a batch (..., p) as (..., 1), to be broadcast against points (n,)."""
    return tuple(theta[..., place, None] for place in range(theta.shape[-1]))


def powers_at(*places: int) -> Powers:
    """`Law.powers` of a form whose parameters A, alpha, B and beta stand at these places of its vector."""
    A, alpha, B, beta = places
    return lambda theta: (theta[:, A], theta[:, alpha], theta[:, B], theta[:, beta])
