"""The study order of the training split: whether the sources' order drifts, and a permutation where it does.

"D spectra" are always the first D rows of the study order, so each of its prefixes must be a fair sample of the whole.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int64
from numpy import ndarray

from scaling.data.hdf5.reader import open_spectra
from scaling.data.shards.manifest import Source
from scaling.data.spectra import spectrum_snr
from scaling.errors import UserError

Order = Literal["auto", "source", "shuffled"]
FIRST_ROWS = 512
"""The first octave; each further one is as long as all before it, as the prefixes of a study are."""
OCTAVE_SAMPLE, WHOLE_SAMPLE = 8192, 16384
SNR_SAMPLE = 512
"""Where the table has no SNR it is computed from the spectra, of about so many of each sample."""
SLAB_ROWS = 65536
"""Rows of a parameter table that are read at once."""
SIGNIFICANCE = 1e-3
"""Adjusted p below which an order drifts: one sound order in a thousand, at most, is shuffled without need."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """The most suspicious of all comparisons of a stretch of rows with the others.

    Attributes:
        passed: Whether the order may be used as it is.
        column: The parameter column; empty where nothing could be compared.
        first_row: Where the stretch begins.
        last_row: Where the next one begins.
        distance: The greatest difference of the two cumulative distributions, 0 to 1.
        p: Its probability in a fair order, multiplied by the number of comparisons.
        columns: Columns compared.
        comparisons: Columns times octaves.
    """

    passed: bool
    column: str
    first_row: int
    last_row: int
    distance: float
    p: float
    columns: int
    comparisons: int

    def __str__(self) -> str:
        if not self.comparisons:
            return "not tested (too few rows, or no column that varies)"
        where = f"{self.column} in rows {self.first_row} to {self.last_row - 1}"
        found = "no drift found, the nearest to one is" if self.passed else "drifts:"
        return f"{found} {where} (distance {self.distance:.3f}, p {self.p:.2g})"


@functools.lru_cache(maxsize=1)
def study_positions(num_rows: int, seed: int) -> Int64[ndarray, " row"]:
    """The position in the shuffled study order of each row of the source order: a permutation, fixed by the seed."""
    return np.random.Generator(np.random.Philox(key=[seed, 0])).permutation(num_rows)


def find_drift(files: list[Source]) -> Drift:
    """Test whether the rows of some files, in their order, could be a random order.

    The rows are cut into octaves, [0, 512), [512, 1024), [1024, 2048) …: what each doubling of a study adds. In each, every
    floating-point column that varies is compared with the same column outside the octave, by the two-sample Kolmogorov–
    Smirnov test: the greatest distance between two cumulative distributions, which notices a shift, a spread and a missing
    part alike. The p values are multiplied by the number of comparisons (Bonferroni), so that a sound order fails less
    often than ``SIGNIFICANCE``. At most 8192 rows an octave are compared with 16384 of the whole: at that size a shift of
    5 % of a standard deviation is found. Whole-number columns (names, counters) are left out. Where the table has no
    column ``snr`` that varies, it is computed from some 512 spectra of each sample.

    Args:
        files: The training split's sources, in order.

    Raises:
        UserError: A file cannot be read.
    """
    num_rows = sum(source.rows for source in files)
    edges = octaves(num_rows)
    spans = list(itertools.pairwise(edges))
    samples = [_spread(0, num_rows, WHOLE_SAMPLE), *(_spread(*span, OCTAVE_SAMPLE) for span in spans)]
    table = _sampled_params(files, np.unique(np.concatenate(samples)))
    columns = [str(name) for name in table.columns if table[name].nunique() > 1]
    if "snr" not in columns:
        thinned = [sample[:: max(1, len(sample) // SNR_SAMPLE)] for sample in samples]
        table["snr"] = _sampled_snr(files, thinned, table.index)
        columns.append("snr")
    return _worst(table, columns, samples[0], list(zip(spans, samples[1:], strict=True)))


def octaves(num_rows: int) -> list[int]:
    """Where the octaves of an order begin, and the end; of a small set the first is shorter, but has 32 rows."""
    first = FIRST_ROWS
    while first > num_rows // 2 and first > 32:
        first //= 2
    edges = [0]
    while max(first, 2 * edges[-1]) < num_rows:
        edges.append(max(first, 2 * edges[-1]))
    return [*edges, num_rows]


def _spread(start: int, stop: int, count: int) -> Int64[ndarray, " sampled"]:
    """Rows spread evenly over a range: one drawn from each of ``count`` equal parts, so that no period is in step."""
    if stop - start <= count:
        return np.arange(start, stop)
    within = np.random.Generator(np.random.Philox(key=[start, stop])).random(count)
    return np.unique(start + ((np.arange(count) + within) * ((stop - start) / count)).astype(np.int64))


def _sampled_params(files: list[Source], rows: Int64[ndarray, " sampled"]) -> pd.DataFrame:
    """The floating-point parameters of some rows, indexed by row; a slab of the table is held at a time."""
    frames, offset = [], 0
    for source in files:
        with open_spectra(Path(source.path)) as spectra:
            for start in range(0, source.rows, SLAB_ROWS):
                stop = min(start + SLAB_ROWS, source.rows)
                inside = rows[(rows >= offset + start) & (rows < offset + stop)]
                slab = spectra.read_params(start, stop).select_dtypes("floating")
                frames.append(slab.iloc[inside - offset - start].set_axis(inside))
        offset += source.rows
    return pd.concat(frames)


def _sampled_snr(files: list[Source], samples: list[Int64[ndarray, " _"]], index: pd.Index) -> pd.Series:
    """The SNR of some rows, NaN for the others of ``index``."""
    values = pd.Series(np.nan, index=index)
    rows, offset = np.unique(np.concatenate(samples)), 0
    for source in files:
        with open_spectra(Path(source.path)) as spectra:
            for row in rows[(rows >= offset) & (rows < offset + source.rows)]:
                values[row] = spectrum_snr(*spectra.read(int(row) - offset, int(row) - offset + 1))[0]
        offset += source.rows
    return values


def _worst(
    table: pd.DataFrame,
    columns: list[str],
    whole: Int64[ndarray, " _"],
    stretches: list[tuple[tuple[int, int], Int64[ndarray, " _"]]],
) -> Drift:
    """The comparison with the least p value, of each column in each stretch of rows with the rows outside it."""
    from scipy.stats import ks_2samp  # slow to import

    comparisons = len(columns) * len(stretches) if len(stretches) > 1 else 0
    worst = ("", 0, 0, 0.0, 1.0)
    for (start, stop), rows in stretches if comparisons else ():
        outside = whole[(whole < start) | (whole >= stop)]
        for column, inside_values, outside_values in _values(table, columns, rows, outside):
            found = ks_2samp(inside_values, outside_values, method="asymp")
            if found.pvalue < worst[4] or not worst[0]:
                worst = (column, start, stop, float(found.statistic), float(found.pvalue))
    column, start, stop, distance, p = worst
    adjusted = min(1.0, p * max(comparisons, 1))
    return Drift(
        passed=adjusted >= SIGNIFICANCE,
        column=column,
        first_row=start,
        last_row=stop,
        distance=distance,
        p=adjusted,
        columns=len(columns) if comparisons else 0,
        comparisons=comparisons,
    )


def _values(
    table: pd.DataFrame, columns: list[str], inside: Int64[ndarray, " _"], outside: Int64[ndarray, " _"]
) -> Iterator[tuple[str, Float64[ndarray, " _"], Float64[ndarray, " _"]]]:
    """The finite values of each column in two sets of rows, where both have some."""
    selected = [table.loc[rows, columns].to_numpy(np.float64) for rows in (inside, outside)]
    for at, column in enumerate(columns):
        values = [rows[:, at][np.isfinite(rows[:, at])] for rows in selected]
        if min(map(len, values)):
            yield column, values[0], values[1]


def require_order(order: str, seed: int) -> None:
    """Refuse an order or seed that there is not.

    Raises:
        UserError: Not an ``Order``, or not a seed.
    """
    if order not in get_args(Order):
        raise UserError(f"order is {order!r}: name one of {', '.join(get_args(Order))}")
    if not 0 <= seed < 2**63:
        raise UserError(f"order seed is {seed}: give a whole number from 0 to 2^63 − 1")
