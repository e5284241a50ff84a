"""The manifest of a shard set, `DEST/manifest.json`, and digests that identify prefixes of a split."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import time
from itertools import accumulate
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from jaxtyping import Float64
from numpy import ndarray
from pydantic import BeforeValidator, Field, PlainSerializer, PrivateAttr, model_validator

from scaling.data.shards.records import Checksum128, LabelStatistics, Rows, Shard, Source, StudyOrder
from scaling.errors import UserError
from scaling.files import Location, json_bytes
from scaling.folder import Folder
from scaling.parquet import read_parquet
from scaling.parse import Strict, parse, parse_object

FORMAT_VERSION = 3
SPLITS = ("train", "val", "test")
MANIFEST = "manifest.json"
STATISTICS = "statistics.parquet"
PIXEL_COLUMNS = ("wave", "flux_mean", "flux_std", "error_rms")
CONVERT_AGAIN = "run the same `scaling shard` command again, or convert the sources into another folder"
MAX_WAVE = 1e12
REMEMBERED_SECONDS = 60.0
"""Lifetime of a cached manifest from an object store. A shard set never changes once its manifest exists."""


def _grid(values: Any) -> Float64[ndarray, " pixel"]:
    if not isinstance(values, ndarray):
        if not isinstance(values, list) or any(type(value) not in (int, float) for value in values):
            raise ValueError("must be a list of numbers")
        if any(abs(value) > MAX_WAVE for value in values):
            raise ValueError(f"must be wavelengths below {MAX_WAVE:g} Å")
    wave = np.array(values, np.float64)
    if wave.ndim != 1 or len(wave) < 2 or not np.isfinite(wave).all() or not (np.diff(wave) > 0).all():
        raise ValueError("must be two or more increasing wavelengths in Å")
    return wave


class Manifest(Strict):
    """The contents of a shard set.

    Attributes:
        wave: Pixel centres in vacuum Å, (pixels,) float64.
        splits: The shards of ``train``, ``val`` and ``test``, in row order.
        sources: The files each split was converted from, in row order.
        labels: Statistics of every numeric column over the training split.
        snr: Percentile → SNR over evenly spaced spectra of the training split.
        snr_rows: Number of spectra behind ``snr``.
        snr_definition: The definition of SNR.
        filled_edges: Number of first or last pixels whose NaN error was filled from the neighbour, over all splits.
        rows_per_shard: Rows of every shard of a split except the last.
        order: The study order of the training split.
        problems: Reasons to doubt results on these shards, one sentence each.
        statistics: Checksum of ``statistics.parquet``.
    """

    wave: Annotated[ndarray, BeforeValidator(_grid), PlainSerializer(lambda wave: wave.tolist())]
    splits: dict[str, list[Shard]]
    sources: dict[str, list[Source]]
    labels: dict[str, LabelStatistics]
    snr: dict[str, float]
    snr_rows: Annotated[int, Field(ge=0)]
    snr_definition: str
    filled_edges: Annotated[int, Field(ge=0)]
    rows_per_shard: Rows
    order: StudyOrder
    problems: list[str]
    statistics: Checksum128
    _folder: Folder = PrivateAttr()

    @model_validator(mode="after")
    def _agrees(self) -> Manifest:
        """Check that the fields are consistent."""
        if tuple(sorted(self.splits)) != tuple(sorted(SPLITS)) or self.sources.keys() != self.splits.keys():
            raise ValueError(f"splits and sources must be those of {', '.join(SPLITS)}")
        for split, shards in self.splits.items():
            if not shards:
                raise ValueError(f"split {split} has no shards")
            files = [shard.file for shard in shards]
            if len(set(files)) < len(files) or any(not file.startswith(f"{split}/") for file in files):
                raise ValueError(f"split {split} lists a shard twice, or one of another split")
            rows = [shard.rows for shard in shards]
            if any(count != self.rows_per_shard for count in rows[:-1]) or rows[-1] > self.rows_per_shard:
                raise ValueError(f"split {split}: every shard but the last must have {self.rows_per_shard} rows")
            expected = sum(source.rows for source in self.sources[split])
            if self.sources[split] and expected != sum(rows):
                raise ValueError(f"split {split} has {sum(rows)} rows, its sources {expected}")
        return self

    @property
    def folder(self) -> Folder:
        """The shard set's folder."""
        return self._folder

    @property
    def dest(self) -> str:
        """Location of the shard set, for messages."""
        return str(self._folder)

    @property
    def pixels(self) -> int:
        """Number of pixels per spectrum."""
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
        """The smallest number of leading shards of a split that contain its first ``num_rows`` rows.

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
        """A short hash that identifies the first ``num_rows`` rows of a split by their shards' checksums.

        Raises:
            UserError: The split has fewer rows.
        """
        parts = [str(num_rows), *(shard.checksum for shard in self.leading_shards(split, num_rows))]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def pixel_statistics(self) -> dict[str, Float64[ndarray, " pixel"]]:
        """Training statistics: ``wave`` (vacuum Å), ``flux_mean`` and ``flux_std`` of max(flux, 0), ``error_rms``.

        Raises:
            UserError: ``statistics.parquet`` is missing or does not match the manifest.
        """
        read = _statistics if self._folder.local else _remembered_statistics
        content = read(self._folder, self.statistics)
        try:
            table = read_parquet(content)
            return {name: table[name].to_numpy() for name in PIXEL_COLUMNS}
        except (pa.ArrowException, KeyError) as error:
            raise UserError(f"{self._folder.locate(STATISTICS)}: cannot be read ({error}): {CONVERT_AGAIN}") from error

    def content(self) -> bytes:
        """The content of ``manifest.json``, including a digest of itself."""
        fields = {"format_version": FORMAT_VERSION, "pixels": self.pixels, **self.model_dump(mode="json")}
        return json_bytes(fields | {"digest": _digest(fields)})

    @classmethod
    def load(cls, location: Location | Folder) -> Manifest:
        """The manifest of a complete shard set; from an object store, cached in this process for `REMEMBERED_SECONDS`.

        Raises:
            UserError: See `read`.
        """
        folder = Folder.at(location)
        return cls.read(folder) if folder.local else _remembered(folder, time.monotonic() // REMEMBERED_SECONDS)

    @classmethod
    def read(cls, location: Location | Folder) -> Manifest:
        """Read the current manifest of a shard set.

        Raises:
            UserError: The folder is not a shard set or has another format version, or the manifest was altered or cannot be
                read.
        """
        folder = Folder.at(location)
        place = folder.locate(MANIFEST)
        try:
            content = folder.read(MANIFEST) if folder.size(MANIFEST) is not None else None
        except OSError as error:
            reason = (str(error).splitlines() or ["no reason given"])[0]
            raise UserError(
                f"{place}: cannot be read ({reason}): check the address, and whether you may read it"
            ) from error
        if content is None:
            raise UserError(f"{folder}: no {MANIFEST}, so not a shard set: run `scaling shard {folder}` (to its end)")
        manifest = parse_manifest(content, place)
        manifest._folder = folder
        return manifest


@functools.lru_cache(maxsize=16)
def _remembered(folder: Folder, period: float) -> Manifest:
    """The manifest as first read in the given period."""
    return Manifest.read(folder)


def _statistics(folder: Folder, checksum: str) -> bytes:
    content = folder.read(STATISTICS)
    if content is None or statistics_checksum(content) != checksum:
        what = "is missing" if content is None else f"differs from the checksum in {MANIFEST}"
        raise UserError(f"{folder.locate(STATISTICS)}: {what}: {CONVERT_AGAIN}")
    return content


_remembered_statistics = functools.lru_cache(maxsize=16)(_statistics)


@functools.lru_cache(maxsize=16)
def parse_manifest(content: bytes, place: str) -> Manifest:
    """Parse the content of a manifest.

    Raises:
        UserError: It has another format version, was altered, or is not a manifest.
    """
    fields = parse_object(content, place, CONVERT_AGAIN)
    version, digest = fields.pop("format_version", None), fields.pop("digest", None)
    if type(version) is not int or version != FORMAT_VERSION:
        raise UserError(
            f"{place}: format version {str(version)[:20]}, expected {FORMAT_VERSION}: convert the sources again, into another folder"
        )
    if digest != _digest({"format_version": version, **fields}):
        raise UserError(f"{place}: was altered, its digest is another: {CONVERT_AGAIN}")
    pixels = fields.pop("pixels", None)
    manifest = parse(Manifest, fields, place, CONVERT_AGAIN)
    if pixels != manifest.pixels:
        raise UserError(
            f"{place}: pixels: expected {manifest.pixels}, the length of wave, found {pixels}: {CONVERT_AGAIN}"
        )
    return manifest


def _digest(fields: dict[str, Any]) -> str:
    """A hash of a manifest's fields, independent of their text layout."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:32]


def statistics_checksum(content: bytes) -> str:
    """The checksum of ``statistics.parquet`` as stored in a manifest."""
    return xxhash.xxh3_128_hexdigest(content)


def pixel_statistics_bytes(columns: dict[str, Float64[ndarray, " pixel"]]) -> bytes:
    """The content of ``statistics.parquet``: one row per pixel."""
    sink = io.BytesIO()
    pq.write_table(pa.table({name: columns[name] for name in PIXEL_COLUMNS}), sink)
    return sink.getvalue()
