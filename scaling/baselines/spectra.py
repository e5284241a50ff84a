"""The first D training spectra with noise, read from the shards block by block, so that memory does not grow with D."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Float32
from numpy import ndarray

from scaling.data.batches import DataRules, FixedNoise, Standardisation
from scaling.data.batches.rules import read_labels
from scaling.data.shards.manifest import Manifest
from scaling.data.shards.shard import column_values, leading_rows
from scaling.data.spectra import ERROR, FLUX


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Consecutive training spectra. Without an `error`, the flux is already noisy."""

    flux: Float32[ndarray, "row pixel"]
    error: Float32[ndarray, "row pixel"] | None
    labels: Float32[ndarray, "row label"]


def blocks(manifest: Manifest, rules: DataRules, sizes: Sequence[int]) -> Iterator[Block]:
    """Yield the leading spectra in study order, split at each of the ascending `sizes`; noisy if the noise is fixed.

    Raises:
        UserError: A shard is damaged, or a label is not finite.
    """
    standardisation = Standardisation.of(manifest.dest, rules)
    noise = FixedNoise(rules.noise_seed, rules.noise_level) if rules.noise == "fixed" else None
    first = 0
    for table in leading_rows(manifest, "train", sizes[-1], columns=[FLUX, ERROR, *rules.labels]):
        flux, error = column_values(table, FLUX), column_values(table, ERROR)
        errors = error if noise is None else None
        labels = standardisation.normalise_labels(_labels(table, rules, f"{manifest.dest}, train from row {first}"))
        if noise is not None:
            flux = noise.add(flux, error, split="train", first_row=first)
        stop = first + len(flux)
        cuts = [0, *(size - first for size in sizes if first < size < stop), len(flux)]
        for low, high in itertools.pairwise(cuts):
            yield Block(flux[low:high], None if errors is None else errors[low:high], labels[low:high])
        first = stop


def training_labels(manifest: Manifest, rules: DataRules, count: int) -> Float32[ndarray, "row label"]:
    """The normalised labels of the first `count` training spectra, without reading their flux."""
    tables = leading_rows(manifest, "train", count, columns=list(rules.labels))
    labels = np.concatenate([_labels(table, rules, f"{manifest.dest}, train") for table in tables])
    return Standardisation.of(manifest.dest, rules).normalise_labels(labels)


def _labels(table: pa.Table, rules: DataRules, where: str) -> ndarray:
    return read_labels(table.select(list(rules.labels)).to_pandas(), rules.labels, where)
