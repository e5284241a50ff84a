"""Dependence of the simulated flux on its labels."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float64
from numpy import ndarray

from scaling.data.simulated.emulator import emulate_flux
from scaling.data.simulated.rows import FULL_PIXELS, LABEL_HIGH, LABEL_LOW, LABELS

Labels = Float64[ndarray, "row label"]
FREE_LABELS = LABELS[:3]
"""Labels that the simulated flux depends on: T_eff, log g and [M/H]. An estimator of one of them knows none of them."""
LOW, SPAN = LABEL_LOW[:3], LABEL_HIGH[:3] - LABEL_LOW[:3]


def flux_derivatives(labels: Labels, pixels: int, step: float = 0.02) -> Float64[ndarray, "row label pixel"]:
    """Derivatives of the simulated flux with respect to each label, in units of the label's range.

    Fourth-order central differences: their error is proportional to the fifth derivative, which is zero for the cubic
    emulator. Any step, in units of each label's range, thus gives the same result to rounding, as the tests check.
    ``labels`` are T_eff in K, log g and [M/H] in dex; fewer ``pixels`` than 4096 are means of adjacent ones.
    """
    derivatives = []
    for direction in np.diag(step * SPAN):
        near, far = (_flux(labels + k * direction, pixels) - _flux(labels - k * direction, pixels) for k in (1, 2))
        derivatives.append((8 * near - far) / (12 * step))
    return np.stack(derivatives, axis=1)


def simulated_flux(params: pd.DataFrame, pixels: int) -> Float64[ndarray, "row pixel"] | None:
    """The noise-free flux for these labels; None if the simulation does not support this number of pixels."""
    return _flux(params[list(FREE_LABELS)].to_numpy(np.float64), pixels) if FULL_PIXELS % pixels == 0 else None


def _flux(labels: Labels, pixels: int) -> Float64[ndarray, "row pixel"]:
    return emulate_flux(labels).reshape(len(labels), pixels, FULL_PIXELS // pixels).mean(axis=2)
