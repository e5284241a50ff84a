"""Columns and checksums of a shard, and statistics that add up."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from scaling.data.hdf5.columns import shard_type
from scaling.data.shards.encode import params_table
from scaling.data.shards.shard import Checksum
from scaling.data.shards.statistics import TrainingStatistics
from scaling.errors import UserError


@pytest.mark.parametrize("values", [[b"G", b"K"], ["G", "K"], ["G", None]])
def test_text_columns(values):
    schema = pa.schema({"kind": pa.string()})
    column = pd.Series(values, dtype=object, name="kind")
    assert shard_type(Path("x.h5"), column) == pa.string()
    expected = [value.decode() if isinstance(value, bytes) else value for value in values]
    assert params_table(column.to_frame(), schema, Path("x.h5"))["kind"].to_pylist() == expected
    with pytest.raises(UserError, match=r"x\.h5: parameter table: .*one kind of value"):
        params_table(pd.DataFrame({"kind": ["G", 2]}, dtype=object), schema, Path("x.h5"))


@pytest.mark.parametrize("cuts", [(3,), (1, 4), (2, 3, 5)])
def test_checksums_and_moments_do_not_depend_on_the_cut(cuts):
    rng = np.random.default_rng(0)
    numbers, words = rng.normal(size=7), np.array([*"abcdefg"])
    table = pa.table({"number": numbers, "word": pa.array(words.tolist())})
    whole, parts = Checksum(), Checksum()
    whole.update(table)
    edges = [0, *cuts, 7]
    for start, stop in itertools.pairwise(edges):
        parts.update(table.slice(start, stop - start))
    assert parts.hexdigest() == whole.hexdigest()

    flux, error = rng.normal(size=(2, 7, 5)).astype(np.float32)
    error = np.abs(error) + 1
    values, sampled = rng.normal(size=(7, 3)), np.arange(7) % 2 == 0
    values[:4, 1], values[:, 2], values[2, 0] = np.nan, np.nan, np.inf

    def statistics(a, b):
        return TrainingStatistics.of(flux[a:b], error[a:b], values[a:b], sampled[a:b])

    first, *rest = (statistics(a, b) for a, b in itertools.pairwise(edges))
    total, expected = sum(rest, start=first), statistics(0, 7)
    for name, found in total.pixels().items():
        np.testing.assert_allclose(found, expected.pixels()[name], rtol=1e-5, atol=1e-7)
    assert (total.rows, len(total.snr)) == (7, 4)
    for at, column in enumerate(total.labels(["a", "b", "c"]).values()):
        known = values[np.isfinite(values[:, at]), at]
        expected = [known.mean(), known.std(), known.min(), known.max()] if len(known) else [np.nan] * 4
        np.testing.assert_allclose([column.mean, column.std, column.min, column.max], expected, rtol=1e-12)
        assert column.nan == 7 - len(known)
