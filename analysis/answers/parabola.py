"""The optimum of a quantity measured at a few places, by a parabola that is trusted only between them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from analysis.laws import Array


class Optimum(NamedTuple):
    """The minimum of a parabola and its value; NaN with a non-empty reason if it is rejected."""

    x: float
    y: float
    reason: str


def bracketed_optimum(x: Array, y: Array) -> Optimum:
    """Fit a parabola of y (n,) in x (n,), of three places or more, by least squares.

    The optimum is rejected if the parabola does not open upwards, or if its minimum lies outside the places.
    """
    nothing = float("nan")
    middle = float(x.mean())
    curvature, slope, height = np.polyfit(x - middle, y, 2)
    if not curvature > 0:
        return Optimum(nothing, nothing, "the parabola does not open upwards")
    best = middle - slope / (2 * curvature)
    if not x.min() < best < x.max():
        side = "smallest" if best <= x.min() else "largest"
        return Optimum(nothing, nothing, f"the optimum lies beyond the {side} one tried")
    return Optimum(float(best), float(height - slope**2 / (4 * curvature)), "")
