"""Records of the manifest, each parsed strictly."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from scaling.parse import MaybeNaN, Strict

Checksum128 = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Rows = Annotated[int, Field(ge=1, le=2**48)]
Order = Literal["auto", "source", "shuffled"]


class Shard(Strict):
    """A Parquet file: its path relative to the shard set, its number of rows, and the checksum of their values."""

    file: Annotated[str, Field(max_length=200, pattern=r"^(train|val|test)/[A-Za-z0-9_-][A-Za-z0-9._-]*\.parquet$")]
    rows: Rows
    checksum: Checksum128


class Source(Strict):
    """A source file: its absolute path as given, spectra, bytes, and ``SpectraFile.fingerprint``."""

    path: str
    rows: Rows
    size: Annotated[int, Field(ge=0)]
    fingerprint: str


class LabelStatistics(Strict):
    """Statistics of a numeric column over the training split, in its own units; ``std`` is the population's.

    ``nan`` counts non-finite values; the other fields cover the finite ones, and are NaN if there are none.
    """

    model_config = ConfigDict(allow_inf_nan=True)
    mean: MaybeNaN
    std: MaybeNaN
    min: MaybeNaN
    max: MaybeNaN
    nan: Annotated[int, Field(ge=0)]


class Drift(Strict):
    """The most significant comparison of a range of rows with the others (see ``order.find_drift``).

    Attributes:
        passed: Whether the order may be used unchanged.
        column: The parameter column; empty if nothing could be compared.
        first_row: First row of the range.
        last_row: First row after the range.
        distance: Maximum difference of the two cumulative distributions, 0 to 1.
        p: p-value under a random order, multiplied by the number of comparisons.
        columns: Number of columns compared.
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


class StudyOrder(Strict):
    """The study order of the training split (source or permuted), with the requested order and the reason."""

    kind: Literal["source", "shuffled"]
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None
    asked: Order
    drift: Drift
