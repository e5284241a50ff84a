"""Bins of test errors by signal to noise and by label, fixed by the data so that trials are comparable."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64
from numpy import ndarray

from scaling.data.batches.cache import map_split
from scaling.data.batches.rules import READ_ROWS, read_labels
from scaling.data.batches.worker import Worker
from scaling.data.shards.manifest import LabelStatistics, Manifest
from scaling.data.spectra import spectrum_snr
from scaling.files import Location

LABEL_BINS = 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SplitBins:
    """SNR and label of every spectrum of a split, in row order, with the bin edges of both.

    Attributes:
        snr: As defined by ``scaling.data.spectra.spectrum_snr``: of the noise-free flux, at noise level 1. Not a model input.
        snr_edges: From ``snr_edges``.
        labels: In the label's own unit, exactly as stored in the shards.
        label_edges: From ``label_edges``.
    """

    snr: Float64[ndarray, " row"]
    snr_edges: Float64[ndarray, " snr_edge"]
    labels: Float64[ndarray, " row"]
    label_edges: Float64[ndarray, " label_edge"]

    @classmethod
    def load(cls, shards: Location, label: str, split: str, worker: Worker) -> SplitBins:
        """Read a whole split from the node's cache.

        Raises:
            UserError: The label is missing or not finite, or the cache has no space.
        """
        manifest = Manifest.load(shards)
        mapped = map_split(shards, split, manifest.num_rows(split), worker.cache_root)
        labels = read_labels(mapped.params([label]), (label,), f"{shards}, {split}")[:, 0]
        snr = np.empty(len(labels))
        for start in range(0, len(labels), READ_ROWS):
            rows = slice(start, start + READ_ROWS)
            snr[rows] = spectrum_snr(mapped.flux[rows], mapped.error[rows])
        mapped.close()
        return cls(
            snr=snr,
            snr_edges=snr_edges(manifest.snr, snr),
            labels=labels,
            label_edges=label_edges(manifest.labels[label]),
        )


def snr_edges(percentiles: dict[str, float], snr: Float[ndarray, " row"]) -> Float64[ndarray, " edge"]:
    """Edges of SNR bins: the training split's percentiles that lie between the minimum and maximum of ``snr``."""
    low, high = float(snr.min()), float(snr.max())
    return np.array([low, *sorted({value for value in percentiles.values() if low < value < high}), high])


def label_edges(label: LabelStatistics) -> Float64[ndarray, " edge"]:
    """Edges of 8 equal-width bins over the label's range in the training split."""
    return np.linspace(label.min, label.max, LABEL_BINS + 1)


def bin_numbers(values: Float[ndarray, " row"], edges: Float[ndarray, " edge"]) -> Int64[ndarray, " row"]:
    """The bin of each value, from 0; values on an edge are in the upper bin, those beyond all in an outer bin."""
    return np.searchsorted(edges[1:-1], values, side="right").astype(np.int64)
