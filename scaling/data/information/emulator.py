"""Emulator of noise-free flux: a polynomial in the labels for every pixel, fitted to spectra with known labels."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Float64
from numpy import ndarray
from numpy.polynomial import chebyshev

from scaling.data.information.fisher import Labels, cramer_rao, fisher_information
from scaling.data.spectra import Pixels
from scaling.errors import UserError

DEGREES = range(1, 9)
SPECTRA_PER_TERM = 4
"""Minimum number of spectra for a polynomial fit, per term."""
LEFT_OUT = 0.2
"""Fraction of the spectra held out to measure the emulator's own error."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Emulator:
    """flux_p(θ) = Σ_t w_tp Π_l T_{n(t,l)}(x_l), with labels x mapped to [−1, 1] and Σ_l n(t,l) ≤ degree.

    T are Chebyshev polynomials.

    As in The Cannon (Ness et al. 2015, arXiv 1501.07604, eq. 1), but of any degree. A basis of principal components would give
    the same result, since the fit is linear in the flux.

    Attributes:
        low: Minimum of each label.
        span: Range of each label.
        degree: Degree of the polynomial.
        weights: One row per term.
    """

    low: Float64[ndarray, " label"]
    span: Float64[ndarray, " label"]
    degree: int
    weights: Float64[ndarray, "term pixel"]

    @classmethod
    def fit(cls, labels: Labels, flux: Pixels, low: ndarray, span: ndarray, degree: int) -> Emulator:
        """Fit by least squares, with equal weight for all pixels."""
        empty = cls(low=low, span=span, degree=degree, weights=np.empty((0, 0)))
        terms = empty._terms(labels)
        weights = np.linalg.lstsq(terms, flux.astype(np.float64), rcond=1e-10)[0]
        return cls(low=low, span=span, degree=degree, weights=weights)

    def flux(self, labels: Labels) -> Float64[ndarray, "row pixel"]:
        """The flux for the given labels."""
        return self._terms(labels) @ self.weights

    def derivatives(self, labels: Labels) -> Float64[ndarray, "row label pixel"]:
        """Derivatives of the flux with respect to each label, in units of the label's range."""
        slopes = [2.0 * self._terms(labels, by) @ self.weights for by in range(labels.shape[1])]
        return np.stack(slopes, axis=1)

    def _terms(self, labels: Labels, by: int | None = None) -> Float64[ndarray, "row term"]:
        """The polynomial's terms, or their derivatives with respect to one of the mapped labels."""
        x = 2.0 * (labels - self.low) / self.span - 1.0
        values = chebyshev.chebvander(x, self.degree)  # (row, label, power)
        if by is not None:
            slopes = chebyshev.chebder(np.eye(self.degree + 1))
            values[:, by] = chebyshev.chebvander(x[:, by], max(self.degree - 1, 0)) @ slopes
        powers = [each for each in product(range(self.degree + 1), repeat=x.shape[1]) if sum(each) <= self.degree]
        chosen = np.array(powers)
        return np.prod([values[:, label][:, chosen[:, label]] for label in range(x.shape[1])], axis=0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tested:
    """An emulator with its accuracy for one label on held-out spectra.

    Attributes:
        emulator: The best of all degrees.
        left_out: Number of held-out spectra.
        shift: Root-mean-square shift of the label caused by the emulator's flux errors, in units of the label's smallest error.
        doubt: Relative difference of the smallest errors from those given by the second-best degree.
    """

    emulator: Emulator
    left_out: int
    shift: float
    doubt: float


def best_emulator(labels: Labels, flux: Pixels, sigma: Pixels, which: int, low: ndarray, span: ndarray) -> Tested:
    """Fit polynomials of all degrees that the spectra allow to four fifths of them, and select on the rest.

    Args:
        labels: Labels of the spectra, in their own units.
        flux: Noise-free flux.
        sigma: One standard deviation of each pixel's noise.
        which: Index of the label to estimate.
        low: Minimum of each label.
        span: Range of each label.

    Raises:
        UserError: There are too few spectra.
    """
    kept = np.arange(len(labels)) % round(1 / LEFT_OUT) != 0
    found = []
    for degree in DEGREES:
        number = Emulator(low=low, span=span, degree=degree, weights=np.empty((0, 0)))._terms(labels[:1]).shape[1]
        if number * SPECTRA_PER_TERM > kept.sum():
            break
        emulator = Emulator.fit(labels[kept], flux[kept], low, span, degree)
        found.append((emulator, *_worth(emulator, labels[~kept], flux[~kept], sigma[~kept], which)))
        if len(found) > 1 and found[-1][1] > found[-2][1]:
            break  # it overfits
    if len(found) < 2:
        raise UserError(f"{len(labels)} spectra are too few to fit an emulator of {labels.shape[1]} labels to")
    found.sort(key=lambda each: each[1])
    (best, shift, error), (_, _, other) = found[:2]
    return Tested(emulator=best, left_out=int((~kept).sum()), shift=shift, doubt=abs(other / error - 1))


def _worth(emulator: Emulator, labels: Labels, flux: Pixels, sigma: Pixels, which: int) -> tuple[float, float]:
    """RMS shift of a label in units of its smallest error, and the mean of that error in units of the label's range."""
    derivatives = emulator.derivatives(labels)
    fisher = fisher_information(derivatives, sigma)
    errors = cramer_rao(fisher, 1 / 12)[:, which]
    weighted = (flux - emulator.flux(labels)) / sigma.astype(np.float64) ** 2
    score = np.einsum("rlp,rp->rl", derivatives, weighted)
    moved = np.linalg.solve(fisher + 12 * np.eye(labels.shape[1]), score[:, :, None])[:, which, 0]
    return float(np.sqrt(np.mean((moved / errors) ** 2))), float(errors.mean())
