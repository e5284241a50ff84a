"""Starting points for a fit: amplitudes solved exactly on a grid of the other parameters (variable projection)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from analysis.laws.law import Array
from analysis.laws.terms import Term

_RIDGE = 1e-13


def separable_starts(terms: Sequence[Term], names: Sequence[str], logs: Array, loss: Array) -> Array:
    """Starting points for a sum of terms, which is linear in the amplitudes for given shape parameters.

    At every node of the grid of shape parameters, the non-negative amplitudes that minimise the relative squared error
    are computed exactly (Golub & Pereyra 1973). Products of columns are computed once per pair of the terms' own grids,
    not once per node.

    Args:
        terms: At most four terms.
        names: Names of the law's parameters, in order.
        logs: Centred logarithms, (v, n).
        loss: The loss, (n,).

    Returns:
        Parameter vectors (k, p), the best first.
    """
    values = {name: each for term in terms for name, each in zip(term.shape, term.grid(logs), strict=True)}
    grid, index = mesh(*values.values())
    sizes = [len(each) for each in values.values()]
    columns, lines = [], []
    for term in terms:
        own, _ = mesh(*(values[name] for name in term.shape))
        log = term.log(tuple(each[:, None] for each in own.T), logs)
        columns.append(np.broadcast_to(np.exp(log), (len(own), len(loss))) / loss)
        lines.append(np.zeros(len(grid), int))
        for place in (list(values).index(name) for name in term.shape):
            lines[-1] = lines[-1] * sizes[place] + index[:, place]
    gram = np.empty((len(grid), len(terms), len(terms)))
    for i, j in np.ndindex(gram.shape[1:]):
        gram[:, i, j] = (columns[i] @ columns[j].T)[lines[i], lines[j]]
    moment = np.stack([each.sum(axis=1)[line] for each, line in zip(columns, lines, strict=True)], axis=1)
    cost, amplitudes = nonnegative_least_squares(gram, moment, len(loss))
    starts = np.empty((len(grid), len(names)))
    starts[:, [names.index(name) for name in values]] = grid
    starts[:, [names.index(term.amplitude) for term in terms]] = amplitudes
    return best_of_each_value(starts, cost, index)


def scaled_starts(shapes: Array, loss: Array) -> tuple[Array, Array]:
    """The best floor E ≥ 0 and scale M ≥ 0 of E + M·shape, for many shapes (k, n) at once.

    Returns:
        Relative squared error (k,), and E and M (k, 2).
    """
    columns = np.stack([np.broadcast_to(1.0 / loss, shapes.shape), shapes / loss], axis=1)
    return nonnegative_least_squares(columns @ columns.swapaxes(1, 2), columns.sum(axis=2), len(loss))


def nonnegative_least_squares(gram: Array, moment: Array, whole: float) -> tuple[Array, Array]:
    """Minimise |Σ_j x_j column_j − target|² over x ≥ 0, for many sets of columns at once.

    Exact: with few columns, every active set is solved and the best feasible solution is chosen.

    Args:
        gram: Gram matrices of the columns, (k, m, m), m at most about four.
        moment: Products of the columns with the target, (k, m).
        whole: Squared norm of the target.

    Returns:
        Squared error (k,) and x (k, m).
    """
    m = moment.shape[1]
    size = np.sqrt(np.maximum(gram[:, range(m), range(m)], np.finfo(float).tiny))
    gram, moment = gram / (size[:, :, None] * size[:, None, :]), moment / size
    cost, best = np.full(len(moment), float(whole)), np.zeros(moment.shape)
    for active in (list(chosen) for count in range(m, 0, -1) for chosen in combinations(range(m), count)):
        block = gram[:, active][:, :, active] + _RIDGE * np.eye(len(active))
        x = np.linalg.solve(block, moment[:, active, None])[..., 0]
        here = whole - np.sum(x * moment[:, active], axis=1)
        better = (x >= 0).all(axis=1) & (here < cost)
        cost[better] = here[better]
        best[better] = 0.0
        best[np.flatnonzero(better)[:, None], active] = x[better]
    return cost, best / size


def mesh(*axes: Array) -> tuple[Array, NDArray[np.intp]]:
    """Every combination of the axes' values: the values (k, m), and their indices on each axis (k, m)."""
    if not axes:
        return np.zeros((1, 0)), np.zeros((1, 0), int)
    sizes = tuple(len(axis) for axis in axes)
    index = np.stack(np.unravel_index(np.arange(np.prod(sizes)), sizes), axis=1)
    return np.stack([axis[index[:, at]] for at, axis in enumerate(axes)], axis=1), index


def best_of_each_value(nodes: Array, cost: Array, keys: NDArray[np.generic]) -> Array:
    """The best node (k', p) for every value of each column of `keys` (k, m), sorted by cost, without duplicates."""
    order = np.argsort(cost, kind="stable")
    chosen: set[int] = set()
    for column in keys[order].T:
        _, first = np.unique(column, return_index=True)
        chosen.update(int(at) for at in first)
    return nodes[order[sorted(chosen)]]
