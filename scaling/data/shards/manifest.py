"""The manifest of a shard set: what `DEST/manifest.json` says, and what identifies the first rows of a split."""

from __future__ import annotations

import hashlib
import json
import math
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from scaling.errors import UserError
from scaling.folder import Folder

FORMAT_VERSION = 2
SPLITS = ("train", "val", "test")
MANIFEST = "manifest.json"
STATISTICS = "statistics.parquet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A Parquet file: its path relative to the shard set, its rows, and the checksum of their values."""

    file: str
    rows: int
    checksum: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A file that was converted: absolute path as given, spectra, bytes, and ``SpectraFile.fingerprint``."""

    path: str
    rows: int
    size: int
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelStatistics:
    """A numeric column over the training split, in its own units; ``std`` is the population's.

    ``nan`` counts the values that are not finite; the rest is over the finite ones, and NaN where there are none.
    """

    mean: float
    std: float
    min: float
    max: float
    nan: int

    def to_json(self) -> dict[str, float | None]:
        """The fields, with null for NaN, which JSON has no word for."""
        return {name: None if math.isnan(value) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> LabelStatistics:
        """The inverse of ``to_json``."""
        values: dict[str, Any] = {name: math.nan if value is None else value for name, value in fields.items()}
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Manifest:
    """What a shard set holds.

    Attributes:
        dest: The shard set's folder.
        wave: Pixel centres in vacuum Å, (pixels,) float64.
        splits: The shards of ``train``, ``val`` and ``test``, in row order.
        sources: The files each split was converted from, in row order.
        labels: Statistics of every numeric column over the training split.
        snr: Percentile → SNR over evenly spaced spectra of the training split.
        snr_rows: How many spectra that is over.
        snr_definition: What is meant by SNR.
        filled_edges: First or last pixels whose NaN error was filled from the neighbour, over all splits.
        rows_per_shard: Rows of every shard of a split but the last.
        order: The study order of the training split: its ``kind`` (``source``, as in the source files, or ``shuffled``),
            ``seed`` (None in source order), what was ``asked`` (``auto`` or a kind), and the source order's ``drift``
            as ``scaling.data.shards.order.Drift`` has it.
        problems: What makes results on these shards doubtful, one sentence each.
        format_version: Of this layout.
    """

    dest: Path
    wave: Float[ndarray, " pixel"]
    splits: dict[str, list[Shard]]
    sources: dict[str, list[Source]]
    labels: dict[str, LabelStatistics]
    snr: dict[str, float]
    snr_rows: int
    snr_definition: str
    filled_edges: int
    rows_per_shard: int
    order: dict[str, Any]
    problems: list[str]
    format_version: int = FORMAT_VERSION

    @property
    def folder(self) -> Folder:
        """STAND-IN."""
        return Folder.at(self.dest)

    def pixel_statistics(self) -> dict[str, Float[ndarray, " pixel"]]:
        """STAND-IN."""
        import pandas as pd

        pixels = pd.read_parquet(self.dest / STATISTICS)
        return {name: pixels[name].to_numpy(np.float64) for name in pixels}

    @property
    def pixels(self) -> int:
        """Pixels of every spectrum."""
        return len(self.wave)

    def label(self, name: str) -> LabelStatistics:
        """Statistics of a label over the training split.

        Raises:
            UserError: There is no such label.
        """
        if name not in self.labels:
            raise UserError(f"{self.dest}: no label {name!r}; the shards have {', '.join(sorted(self.labels))}")
        return self.labels[name]

    def shards(self, split: str) -> list[Shard]:
        """The shards of a split, in row order.

        Raises:
            UserError: There is no such split.
        """
        if split not in self.splits:
            raise UserError(f"{self.dest}: no split {split!r}: name one of {', '.join(self.splits)}")
        return self.splits[split]

    def num_rows(self, split: str) -> int:
        """The number of spectra in a split."""
        return sum(shard.rows for shard in self.shards(split))

    def leading_shards(self, split: str, num_rows: int) -> list[Shard]:
        """The fewest first shards of a split that hold its first ``num_rows`` rows.

        Raises:
            UserError: The split has fewer rows.
        """
        shards = self.shards(split)
        if not 1 <= num_rows <= self.num_rows(split):
            available = self.num_rows(split)
            raise UserError(f"{self.dest}: {num_rows} spectra of {split} asked for: it holds 1 to {available}")
        rows_before = accumulate((shard.rows for shard in shards), initial=0)
        return [shard for shard, before in zip(shards, rows_before, strict=False) if before < num_rows]

    def digest(self, split: str, num_rows: int) -> str:
        """A short hash of what identifies the first ``num_rows`` rows of a split: their shards' checksums.

        Raises:
            UserError: The split has fewer rows.
        """
        parts = [str(num_rows), *(shard.checksum for shard in self.leading_shards(split, num_rows))]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def save(self) -> None:
        """Publish the shard set: the last file written, under its name at once."""
        fields = asdict(self) | {"wave": self.wave.tolist(), "pixels": self.pixels}
        del fields["dest"]
        fields["labels"] = {name: statistics.to_json() for name, statistics in self.labels.items()}
        write_json(self.dest / MANIFEST, fields)

    @classmethod
    def load(cls, dest: Path) -> Manifest:
        """Read the manifest of a shard set.

        Raises:
            UserError: The folder is not a shard set, or one of another format version.
        """
        path = Path(dest) / MANIFEST
        if not path.is_file():
            raise UserError(f"{dest}: no {MANIFEST}, so not a set of shards: run `scaling shard {dest}` (to its end)")
        try:
            fields = json.loads(path.read_text())
            version = fields.pop("format_version")
        except (ValueError, KeyError, AttributeError) as error:
            raise UserError(f"{path} cannot be read ({error}): remove it and run `scaling shard` again") from error
        if version != FORMAT_VERSION:
            raise UserError(f"{path}: format version {version}, expected {FORMAT_VERSION}: convert the sources again")
        del fields["pixels"]
        fields |= {
            "wave": np.array(fields["wave"], dtype=np.float64),
            "splits": {split: [Shard(**shard) for shard in shards] for split, shards in fields["splits"].items()},
            "sources": {split: [Source(**source) for source in files] for split, files in fields["sources"].items()},
            "labels": {name: LabelStatistics.from_json(statistics) for name, statistics in fields["labels"].items()},
        }
        return cls(dest=Path(dest), **fields)


def temporary_name(path: Path) -> Path:
    """A name beside ``path`` to write to before renaming: hidden, unique, ending in ``.tmp``."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


@contextmanager
def published(path: Path) -> Iterator[Path]:
    """A temporary name to write a file under; it gets its own name when it is written and on the disk, or is removed.

    Without the ``fsync`` a node that loses power could leave the name and not the content.
    """
    temporary = temporary_name(path)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: object) -> None:
    """Write JSON under a temporary name, then rename."""
    with published(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
