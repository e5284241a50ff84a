"""The study order of the training split: a drift test of the source order, and a permutation if it drifts.

"D spectra" are always the first D rows of the study order, so each of its prefixes must be a fair sample of the whole.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int64
from numpy import ndarray

from scaling.data.hdf5.reader import TABLE_ROWS, open_spectra
from scaling.data.shards.records import Drift, Source
from scaling.data.spectra import spectrum_snr

FIRST_ROWS = 512
"""Length of the first octave; each further one is as long as all before it together, like the prefixes of a study."""
OCTAVE_SAMPLE, WHOLE_SAMPLE = 8192, 16384
SNR_SAMPLE = 512
"""Approximate number of spectra per sample from which SNR is computed, if the table has none."""
SIGNIFICANCE = 1e-3
"""Adjusted p-value below which an order drifts: at most one random order in a thousand is shuffled needlessly."""


@functools.lru_cache(maxsize=1)
def study_positions(num_rows: int, seed: int) -> Int64[ndarray, " row"]:
    """Position of each source row in the shuffled study order: a permutation determined by the seed."""
    return np.random.Generator(np.random.Philox(key=[seed, 0])).permutation(num_rows)


@functools.lru_cache(maxsize=1)
def study_order(num_rows: int, seed: int) -> Int64[ndarray, " row"]:
    """The source row at each position of the shuffled study order."""
    return np.argsort(study_positions(num_rows, seed))


def find_drift(files: list[Source]) -> Drift:
    """Test whether the order of the rows of some files could be random.

    The rows are cut into octaves, [0, 512), [512, 1024), [1024, 2048) …: the rows that each doubling of D adds. For each
    octave, every varying floating-point column is compared with the same column outside it by the two-sample Kolmogorov–
    Smirnov test: the maximum distance between two cumulative distributions, sensitive to shifts, spreads and missing
    parts. The p-values are multiplied by the number of comparisons (Bonferroni), so that a random order fails less
    often than ``SIGNIFICANCE``. At most 8192 rows per octave are compared with 16384 of the whole: enough to detect a
    shift of 5 % of a standard deviation. Integer columns (names, counters) are ignored. If the table has no varying
    column ``snr``, it is computed from about 512 spectra of each sample.

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
    """Boundaries of the octaves of an order; in a small set the first is shorter, but has at least 32 rows."""
    first = FIRST_ROWS
    while first > num_rows // 2 and first > 32:
        first //= 2
    edges = [0]
    while max(first, 2 * edges[-1]) < num_rows:
        edges.append(max(first, 2 * edges[-1]))
    return [*edges, num_rows]


def _spread(start: int, stop: int, count: int) -> Int64[ndarray, " sampled"]:
    """Stratified sample of a range: one random row from each of ``count`` equal parts, so that no period aliases."""
    if stop - start <= count:
        return np.arange(start, stop)
    within = np.random.Generator(np.random.Philox(key=[start, stop])).random(count)
    return np.unique(start + ((np.arange(count) + within) * ((stop - start) / count)).astype(np.int64))


def _sampled_params(files: list[Source], rows: Int64[ndarray, " sampled"]) -> pd.DataFrame:
    """Floating-point parameters of some rows, indexed by row; only part of the table is in memory at a time."""
    frames, offset = [], 0
    for source in files:
        with open_spectra(Path(source.path)) as spectra:
            for start in range(0, source.rows, TABLE_ROWS):
                stop = min(start + TABLE_ROWS, source.rows)
                inside = rows[(rows >= offset + start) & (rows < offset + stop)]
                some = spectra.read_params(start, stop).select_dtypes("floating")
                frames.append(some.iloc[inside - offset - start].set_axis(inside))
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
    ranges: list[tuple[tuple[int, int], Int64[ndarray, " _"]]],
) -> Drift:
    """The comparison with the smallest p-value, over all columns and all ranges against the rows outside them."""
    from scipy.stats import ks_2samp  # slow import

    comparisons = len(columns) * len(ranges) if len(ranges) > 1 else 0
    worst = ("", 0, 0, 0.0, 1.0)
    for (start, stop), rows in ranges if comparisons else ():
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
    """Yield the finite values of each column in two sets of rows, if both have some."""
    selected = [table.loc[rows, columns].to_numpy(np.float64) for rows in (inside, outside)]
    for at, column in enumerate(columns):
        values = [rows[:, at][np.isfinite(rows[:, at])] for rows in selected]
        if min(map(len, values)):
            yield column, values[0], values[1]
