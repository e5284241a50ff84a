"""Leaks: spectra that occur in two splits, so that a model is scored on its training data."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import xxhash
from jaxtyping import Int64, UInt64
from numpy import ndarray

from scaling.data.hdf5.reader import BLOCK_ROWS, TABLE_ROWS, open_spectra

ROLES = ("train", "val", "test")


def role_of(path: Path) -> str | None:
    """The split of a file, if its folder's name (or its own) begins with ``train``, ``val`` or ``test``."""
    names = (path.absolute().parent.name, path.name)
    return next((role for name in names for role in ROLES if name.startswith(role)), None)


def find_leaks(paths: list[Path]) -> list[str]:
    """Pairs of files of different splits with common spectra, one sentence each; files of unknown split are skipped.

    Candidates are rows whose numeric parameters, except ``id``, are all equal; their flux decides. Memory: tens of bytes
    per row, plus one block of spectra.
    """
    files = [path for path in paths if role_of(path)]
    pairs = [(one, two) for one, two in itertools.combinations(files, 2) if role_of(one) != role_of(two)]
    if not pairs:
        return []
    columns = sorted(set.intersection(*map(_numeric_columns, files)))
    keys = {path: _parameter_keys(path, columns) for path in files}
    candidates = {}
    for path in files:
        elsewhere = np.concatenate([keys[other] for other in files if role_of(other) != role_of(path)])
        rows = np.flatnonzero(np.isin(keys[path], elsewhere))
        candidates[path] = pd.DataFrame({"key": keys[path][rows], "flux": _flux_keys(path, rows), "row": rows})
    leaks = []
    for one, two in pairs:
        there = candidates[one].drop_duplicates(["key", "flux"], keep="last")
        leaked = candidates[two].merge(there, on=["key", "flux"], suffixes=("", "_there")).sort_values("row")
        if len(leaked):
            row, row_there = leaked[["row", "row_there"]].iloc[0]
            leaks.append(
                f"{len(leaked)} spectra of {two} are in {one} too (row {row} is row {row_there} there): "
                "a leak between splits, drop them from one"
            )
    return leaks


def _numeric_columns(path: Path) -> set[str]:
    """The numeric columns of a file except ``id``, which numbers its rows."""
    with open_spectra(path) as spectra:
        return set(spectra.read_params(0, 1).select_dtypes("number").columns) - {"id"}


def _parameter_keys(path: Path, columns: list[str]) -> UInt64[ndarray, " row"]:
    """A hash per row, equal for equal parameters; non-finite values count as missing."""
    keys = []
    with open_spectra(path) as spectra:
        for start in range(0, spectra.num_rows, TABLE_ROWS):
            frame = spectra.read_params(start, min(start + TABLE_ROWS, spectra.num_rows))
            values = frame[columns].astype(np.float64)
            values = values.where(np.isfinite(values), np.nan) + 0.0  # + 0.0 turns −0.0 into 0.0
            keys.append(pd.util.hash_pandas_object(values, index=False).to_numpy())
    return np.concatenate(keys)


def _flux_keys(path: Path, rows: Int64[ndarray, " candidate"]) -> UInt64[ndarray, " candidate"]:
    """A hash per row, equal for equal flux (as float32, the training precision)."""
    keys: list[int] = []
    with open_spectra(path) as spectra:
        for first in range(0, len(rows), BLOCK_ROWS):
            flux, _ = spectra.read_rows(rows[first : first + BLOCK_ROWS])
            keys += map(xxhash.xxh3_64_intdigest, flux)
    return np.array(keys, np.uint64)
