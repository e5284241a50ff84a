"""Leaks: spectra that are in two splits, so that a model is scored on what it was trained on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import xxhash
from jaxtyping import UInt64
from numpy import ndarray

from scaling.data.hdf5.reader import TABLE_ROWS, SpectraFile, open_spectra

ROLES = ("train", "val", "test")


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """Rows of two files of different splits with equal parameters, and how many of them are the same spectrum.

    Attributes:
        first: A file.
        second: A file of another split.
        candidates: Rows of ``second`` whose parameters are those of a row of ``first``.
        spectra: Those whose flux is that row's, too: the leak.
        first_row: The row in ``first`` of the first such spectrum, None where there is none.
        second_row: Its row in ``second``.
    """

    first: str
    second: str
    candidates: int
    spectra: int
    first_row: int | None
    second_row: int | None

    def to_text(self) -> str:
        """The leak in one sentence."""
        return (
            f"{self.spectra} spectra of {self.second} are in {self.first} too (row {self.second_row} is row "
            f"{self.first_row} there): a leak between splits, drop them from one"
        )


def role_of(path: Path) -> str | None:
    """The split a file belongs to: its folder's name (or its own) begins with ``train``, ``val`` or ``test``."""
    names = (path.absolute().parent.name, path.name)
    return next((role for name in names for role in ROLES if name.startswith(role)), None)


def find_leaks(paths: list[Path]) -> list[Leak]:
    """Look for spectra that are in files of different splits.

    Rows whose numeric parameters are equal in both, but for ``id``, are candidates; their flux decides. Memory is some
    tens of bytes a row, and that of a piece of spectra.

    Args:
        paths: Files of spectra; those whose split is unknown are left out.

    Returns:
        The pairs of files with candidates.

    Raises:
        UserError: A file cannot be read.
    """
    files = [path for path in paths if role_of(path)]
    pairs = [pair for pair in itertools.combinations(range(len(files)), 2) if _differ(files, pair)]
    if not pairs:
        return []
    columns = _common_columns(files)
    keys = [_parameter_keys(path, columns) for path in files]
    shared = {pair: np.intersect1d(keys[pair[0]], keys[pair[1]]) for pair in pairs}
    shared = {pair: values for pair, values in shared.items() if len(values)}
    candidates = {
        index: np.flatnonzero(np.isin(keys[index], np.concatenate([shared[pair] for pair in shared if index in pair])))
        for index in {index for pair in shared for index in pair}
    }
    flux_keys = {index: _flux_keys(files[index], rows) for index, rows in candidates.items()}
    return [
        _compare(
            (files[one], keys[one], candidates[one], flux_keys[one]),
            (files[two], keys[two], candidates[two], flux_keys[two]),
        )
        for one, two in shared
    ]


def _differ(files: list[Path], pair: tuple[int, int]) -> bool:
    return role_of(files[pair[0]]) != role_of(files[pair[1]])


def _common_columns(files: list[Path]) -> list[str]:
    """The numeric columns that all files have, but for ``id``, which numbers the rows of each."""
    common: set[str] | None = None
    for path in files:
        with open_spectra(path) as spectra:
            head = spectra.read_params(0, 1)
        found = {str(name) for name in head.select_dtypes("number").columns} - {"id"}
        common = found if common is None else common & found
    return sorted(common or ())


def _slabs(spectra: SpectraFile) -> Iterator[pd.DataFrame]:
    for start in range(0, spectra.num_rows, TABLE_ROWS):
        yield spectra.read_params(start, min(start + TABLE_ROWS, spectra.num_rows))


def _parameter_keys(path: Path, columns: list[str]) -> UInt64[ndarray, " row"]:
    """A number for each row that equal parameters share; what is not finite counts as absent."""
    keys = []
    with open_spectra(path) as spectra:
        for frame in _slabs(spectra):
            values = frame[columns].astype(np.float64)
            values = values.where(np.isfinite(values), np.nan) + 0.0  # + 0.0 turns a negative zero positive
            keys.append(pd.util.hash_pandas_object(values, index=False).to_numpy())
    return np.concatenate(keys)


def _flux_keys(path: Path, rows: ndarray) -> UInt64[ndarray, " candidate"]:
    """A number for each of some rows, in rising order, that equal flux shares (as float32, which is trained on)."""
    keys = []
    runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
    with open_spectra(path) as spectra:
        for run in runs:
            for _, flux, _ in spectra.pieces(int(run[0]), int(run[-1]) + 1):
                keys += [xxhash.xxh3_64_intdigest(row) for row in flux]
    return np.array(keys, np.uint64)


def _compare(first: tuple[Path, ndarray, ndarray, ndarray], second: tuple[Path, ndarray, ndarray, ndarray]) -> Leak:
    """The leak between two files, each given with its rows' keys, its candidates, and their flux keys."""
    (one, one_keys, one_rows, one_flux), (two, two_keys, two_rows, two_flux) = first, second
    there = dict(zip(zip(one_keys[one_rows].tolist(), one_flux.tolist(), strict=True), one_rows.tolist(), strict=True))
    here = list(zip(two_keys[two_rows].tolist(), two_flux.tolist(), strict=True))
    leaked = [(there[key], row) for key, row in zip(here, two_rows.tolist(), strict=True) if key in there]
    return Leak(
        first=str(one),
        second=str(two),
        candidates=int(np.isin(two_keys, one_keys).sum()),
        spectra=len(leaked),
        first_row=leaked[0][0] if leaked else None,
        second_row=leaked[0][1] if leaked else None,
    )
