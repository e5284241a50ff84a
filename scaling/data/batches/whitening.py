"""A linear map that whitens the noisy training spectra, fitted to the shards and stored in the node's cache."""

from __future__ import annotations

import hashlib
import io
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import xxhash
from jaxtyping import Float32, Float64
from torch import Tensor

from scaling.data.batches.cache import private_root
from scaling.data.batches.cachefolder import hold, locked, read_file, split_folder
from scaling.data.batches.moments import Moments
from scaling.data.batches.rules import DataRules
from scaling.data.batches.worker import Worker
from scaling.data.shards.manifest import Manifest
from scaling.data.shards.shard import column_values, leading_rows
from scaling.data.spectra import ERROR, FLUX
from scaling.errors import NodeError
from scaling.files import Location, published

WHITENING_ROWS = 65_536
"""Maximum number of leading training spectra used, whatever the size of the cell: any prefix is a fair sample."""
EIGENVALUE_FLOOR = 1e-10
"""Lower bound on the eigenvalues, relative to the largest, so that directions of little variance are not amplified."""
LOCK = "whitening.lock"


@dataclass(frozen=True, slots=True, eq=False)
class LinearMap:
    """The map of standardised flux x to weight · x + bias."""

    weight: Float32[Tensor, "component pixel"]
    bias: Float32[Tensor, " component"]


def fit_whitening(
    shards: Location, rules: DataRules, kind: Literal["pca", "zca"], components: int, worker: Worker
) -> LinearMap:
    """The map under which noisy training spectra have mean 0 and covariance 1; read from this node's cache if present.

    With the eigenvectors E and eigenvalues Λ of the covariance of the standardised noisy flux, "pca" is Λ^(−1/2) Eᵀ for the
    largest eigenvalues, in descending order, each row's largest entry positive; "zca" is E Λ^(−1/2) Eᵀ, the whitening that
    changes the spectra least (Kessy, Lewin & Strimmer 2018, arXiv 1512.00809).

    Args:
        shards: The shard set.
        rules: How spectra become inputs.
        kind: "pca" or "zca".
        components: Rows of the map; 0 for the number of pixels.
        worker: Its device computes the map, in float64: for 4,096 pixels about a minute on one core. All trials of a node
            use the one file in its cache; the maps of other nodes agree to rounding.

    Raises:
        UserError: A shard is damaged.
        NodeError: The map cannot be written, or the cache is not private to this user.
    """
    manifest = Manifest.load(shards)
    settings = (kind, components, rules.input_norm, float(rules.noise_level), WHITENING_ROWS, EIGENVALUE_FLOOR)
    folder = split_folder(private_root(worker.cache_root), manifest, "train")
    path = folder / f"whitening-{hashlib.sha256(repr(settings).encode()).hexdigest()[:16]}.map"
    try:
        with open(hold(folder), "rb"), locked(folder / LOCK):
            if (kept := _read(path)) is not None:
                return kept
            found = whitening_map(*noisy_moments(manifest, rules, worker.device), kind, components)
            content = io.BytesIO()
            np.savez(content, weight=found.weight.numpy(), bias=found.bias.numpy())
            with published(path) as temporary:
                temporary.write_bytes(xxhash.xxh3_128_digest(content.getbuffer()) + content.getbuffer())
            return found
    except OSError as error:
        raise NodeError(f"{path}: cannot be kept ({error.strerror}): set SCALING_CACHE to another folder") from error


def _read(path: Path) -> LinearMap | None:
    """Read a map from a file and verify its digest; None where there is none, or it was altered."""
    try:
        content = memoryview(read_file(path))
    except FileNotFoundError:
        return None
    try:
        if xxhash.xxh3_128_digest(content[16:]) != content[:16]:
            raise ValueError("another digest")
        with np.load(io.BytesIO(content[16:]), allow_pickle=False) as arrays:
            return LinearMap(torch.from_numpy(arrays["weight"]), torch.from_numpy(arrays["bias"]))
    except ValueError:  # NumPy raises it too, for pickled objects
        logging.getLogger(__name__).warning("%s: was altered: fitted again", path)
        return None


def noisy_moments(
    manifest: Manifest, rules: DataRules, device: torch.device
) -> tuple[Float64[Tensor, " pixel"], Float64[Tensor, "pixel pixel"]]:
    """Mean and covariance of the standardised noisy training flux, as expectations over the noise, on the device."""
    rows, moments = min(WHITENING_ROWS, manifest.num_rows("train")), Moments(manifest, rules, device)
    for table in leading_rows(manifest, "train", rows, columns=[FLUX, ERROR]):
        moments.add(column_values(table, FLUX), column_values(table, ERROR))
    return moments.standardised()


def whitening_map(
    mean: Float64[Tensor, " pixel"],
    covariance: Float64[Tensor, "pixel pixel"],
    kind: Literal["pca", "zca"],
    components: int,
) -> LinearMap:
    """The whitening map for spectra of this mean and covariance, on the CPU."""
    values, vectors = torch.linalg.eigh(covariance)  # in ascending order
    first = len(values) - (components or len(values))
    values, vectors = values[first:].flip(0), vectors[:, first:].flip(1)
    scaled = vectors / values.clamp(min=EIGENVALUE_FLOOR * float(values[0])).sqrt()
    if kind == "zca":
        weight = scaled @ vectors.T
    else:
        weight = scaled.T
        weight = weight * weight.gather(1, weight.abs().argmax(dim=1, keepdim=True)).sign()
    return LinearMap(weight.float().cpu(), (-weight @ mean).float().cpu())
