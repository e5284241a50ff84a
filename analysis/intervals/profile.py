"""Profile likelihood: how far a parameter may be from its estimate before the fit becomes significantly worse."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from analysis.fitting.likelihood import Likelihood, at_bound, frame, inverse_products
from analysis.fitting.solve import minimise
from analysis.laws import Array
from analysis.laws.law import TINY

Interval = tuple[float, float]
"""(low, high); an end that does not exist is 0, −inf or inf."""

_TOLERANCE = 1e-9
_CLOSE = 2e-3  # relative precision of an interval's end, in t
_GROWTH = 4.0  # maximum factor by which a search for an end extends its reach
_EXPANSIONS, _ROUNDS = 14, 30


def parameter_intervals(likely: Likelihood, level: float) -> dict[str, Interval]:
    """Profile-likelihood intervals of all parameters: where the sum of squares rises by s²·F (Bates & Watts 1988, 6.1).

    An end that cannot be found, because of a bound or a flat profile, is 0 (−inf if negative values are possible) or inf.

    Args:
        likely: The sum of squares.
        level: Coverage.
    """
    ends = np.empty((len(likely.law.parameters), 2))
    for offsets, places in _frames(likely):
        ends[places] = _Search(likely, offsets, places).ends(level)
    return {name: (float(low), float(high)) for name, (low, high) in zip(likely.law.parameters, ends, strict=True)}


def profile_rise(likely: Likelihood, parameter: str, values: Array) -> Array:
    """Signed roots t of the increase in the sum of squares, (k,), with a parameter held at each of the values (k,).

    The parameter's interval is where |t| is below Student's quantile for `likely.dof` degrees of freedom.
    """
    place = likely.law.parameters.index(parameter)
    offsets = next(offsets for offsets, places in _frames(likely) if place in places)
    search = _Search(likely, offsets, [place])
    t = search.rise(np.zeros(len(values), int), np.asarray(values, float))[0]
    alike = stats.t.isf(stats.t.sf(t, search.dof[place]), likely.dof)  # a modelled variance has fewer degrees
    return np.sign(values - search.theta[place]) * alike


def _frames(likely: Likelihood) -> list[tuple[Array, list[int]]]:
    """Offsets (v,) of the frames in which parameters are profiled, with the indices of those parameters.

    All variables are centred except those whose origin a parameter depends on, such as N for the amplitude A.
    """
    offsets, theta = frame(likely)
    frames: dict[tuple[float, ...], list[int]] = {}
    steps = np.eye(len(offsets))
    if "S" in likely.law.variables:  # S is compared with D, so both move together
        steps[1:, 1:] = 1.0
    moved = [likely.law.shifted(theta, step) for step in steps]
    for place in range(len(theta)):
        depends = np.array([each[place] != theta[place] for each in moved])
        frames.setdefault(tuple(np.where(depends, 0.0, offsets)), []).append(place)
    return [(np.array(key), places) for key, places in frames.items()]


class _Search:
    """Simultaneous search for both ends of several parameters' intervals, in one frame."""

    def __init__(self, likely: Likelihood, offsets: Array, places: list[int]) -> None:
        law = likely.law
        middle, centred = frame(likely)
        self.theta = law.shifted(likely.fitted.theta, -offsets)
        with np.errstate(divide="ignore", invalid="ignore"):
            scale = np.where(centred != 0, self.theta / centred, 1.0)  # bounds apply to centred variables
        self.lower, self.upper = np.array(law.lower) * scale, np.array(law.upper)
        self.upper = np.where(np.isfinite(self.upper), self.upper * scale, np.inf)
        law = replace(law, lower=tuple(self.lower), upper=tuple(self.upper))
        self.likely, self.places = likely, np.array(places)
        self.problem = likely.problem(offsets, law)
        slopes = likely.slopes(self.theta, self.problem.logs) * np.sqrt(self.problem.weights)
        self.width = np.sqrt(likely.variance * np.diag(inverse_products(slopes)))
        slopes[at_bound(law, self.theta)] = 0.0
        self.inverse = inverse_products(slopes)
        ratio, source = likely.inflation(np.eye(len(self.theta)), slopes, self.inverse)
        self.spread, self.dof = likely.variance * ratio, likely.effective_dof(source)
        self.log = np.any(offsets != middle) and np.all(self.theta[places] > 0)

    def rise(self, which: NDArray[np.intp], values: Array, start: Array | None = None) -> tuple[Array, Array]:
        """Root of the increase over its variance (k,), and the parameters (k, p), with places[which] at `values`."""
        place = self.places[which]
        start = np.repeat(self.theta[None], len(place), axis=0) if start is None else start.copy()
        rows = np.arange(len(place))
        own = self.inverse[place, place]
        path = self.inverse[place] / np.where(own > 0, own, np.inf)[:, None]
        if not self.log:  # along the valley; amplitudes far from the origin are too curved for it
            start += path * (values - start[rows, place])[:, None]
        start[rows, place] = values
        fixed = np.zeros(start.shape, bool)
        fixed[rows, place] = True
        found = minimise(self.problem, start, fixed=fixed, tolerance=_TOLERANCE, iterations=100)
        rise = np.maximum(found.value - self.likely.minimum, 0.0)
        return np.sqrt(rise / np.maximum(self.spread[place], TINY)), found.theta

    def ends(self, level: float) -> Array:
        """Low and high end for each parameter, (places, 2)."""
        count = len(self.places)
        which, side = np.tile(np.arange(count), 2), np.repeat([-1.0, 1.0], count)
        place = self.places[which]
        middle = self.theta[place]
        to, back = (np.log, np.exp) if self.log else (lambda value: value, lambda value: value)
        target = stats.t.ppf(0.5 + level / 2, self.dof[place])
        width = self.width[place] * target
        width = np.where(width > 0, width, np.maximum(0.1 * np.abs(middle), 1e-3))
        width = np.clip(width / middle, 0.05, 2.0) if self.log else width
        with np.errstate(divide="ignore"):
            stop = np.abs(to(np.where(side < 0, self.lower[place], self.upper[place])) - to(middle))
        # distances from the estimate: `inside` the interval, `outside` it once found, and the next to try
        inside, t_inside = np.zeros(2 * count), np.zeros(2 * count)
        outside, t_outside = np.full(2 * count, np.inf), np.full(2 * count, np.inf)
        distance, open_end, active = np.minimum(width, stop), stop <= 0, stop > 0
        theta = np.repeat(self.theta[None], 2 * count, axis=0)
        for turn in range(_ROUNDS):
            now = np.flatnonzero(active)
            if not len(now):
                break
            t, theta[now] = self.rise(which[now], back(to(middle) + side * distance)[now], theta[now])
            below = t < target[now]
            inside[now[below]], t_inside[now[below]] = distance[now[below]], t[below]
            outside[now[~below]], t_outside[now[~below]] = distance[now[~below]], t[~below]
            unbracketed = ~np.isfinite(outside)
            open_end |= active & unbracketed & ((inside >= stop) | (turn >= _EXPANSIONS))
            done = np.zeros(2 * count, bool)
            done[now] = np.abs(t - target[now]) < _CLOSE * target[now]
            active &= ~(open_end | done)
            with np.errstate(divide="ignore", invalid="ignore"):
                reach = np.clip(1.05 * target / t_inside, 1.3, _GROWTH)
                share = (target - t_inside) / (t_outside - t_inside)
                between = inside + np.clip(share, 0.1, 0.9) * (outside - inside)
            following = np.where(unbracketed, np.minimum(inside * reach, stop), between)
            distance = np.where(active, following, distance)
        floor = np.array([name == "E" for name in self.likely.law.parameters])[place]  # E may have a physical bound
        lowest = np.where(floor, self.lower[place], np.where(self.lower[place] < 0, -np.inf, 0.0))
        natural = np.where(side > 0, np.inf, lowest)
        found = np.where(open_end, natural, back(to(middle) + side * np.where(open_end, 0.0, distance)))
        return found.reshape(2, count).T
