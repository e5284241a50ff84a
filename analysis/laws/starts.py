"""Where to begin a search: amplitudes solved exactly on a grid of the other parameters (variable projection)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np

from analysis.laws.law import TINY, Array
from analysis.laws.terms import Term

_RIDGE = 1e-13


def separable_starts(terms: Sequence[Term], names: Sequence[str], logs: Array, loss: Array) -> Array:
    """Starts for a sum of terms: linear in the amplitudes once the shape parameters are given.

    At every node of the grid of shape parameters the non-negative amplitudes that minimise the relative squared error
    are found exactly (Golub & Pereyra 1973). Products of columns are formed once for each pair of terms, not once for
    each node.

    Args:
        terms: at most four.
        names: of the law's parameters, in order.
        logs: centred, (v, n).
        loss: (n,).

    Returns:
        Parameter vectors (k, p), the best first.
    """
    own = [mesh(*term.grid(logs)) for term in terms]
    columns = [
        np.exp(term.log(tuple(values.T[..., None]), logs)) / loss * np.ones((len(values), 1))
        for term, values in zip(terms, own, strict=True)
    ]
    shapes = {name: values for term in terms for name, values in zip(term.shape, term.grid(logs), strict=True)}
    grid = mesh(*shapes.values())
    lines = []  # of each term, the number of its column at each node
    for term, values in zip(terms, own, strict=True):
        at = [list(shapes).index(name) for name in term.shape]
        lines.append(np.ravel_multi_index([np.searchsorted(...)]))
    raise NotImplementedError
