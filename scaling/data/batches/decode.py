"""The only decoder of shards into arrays for batches, shared by the node's cache and by streams."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from jaxtyping import Float32
from numpy import ndarray

from scaling.data.batches.noise import FixedNoise
from scaling.data.shards.manifest import Manifest
from scaling.data.shards.shard import column_values, shard_blocks
from scaling.data.spectra import ERROR, FLUX


def channels(noise: FixedNoise | None) -> int:
    """Arrays per spectrum: flux and error, adjacent so that a row is one read; or only the flux with fixed noise."""
    return 1 if noise else 2


def shard_spectra(
    manifest: Manifest, split: str, index: int, noise: FixedNoise | None
) -> Iterator[tuple[Float32[ndarray, "row channel pixel"], pa.Table]]:
    """Yield the spectra of a shard and its other columns, one row group at a time.

    Raises:
        UserError: The shard is damaged or is not the one in the manifest; possibly raised only after the last rows.
    """
    first_row = index * manifest.rows_per_shard
    for table in shard_blocks(manifest, split, index):
        flux, error = column_values(table, FLUX), column_values(table, ERROR)
        noisy = noise.add(flux, error, split=split, first_row=first_row) if noise else None
        yield (
            np.stack([flux, error], axis=1) if noisy is None else noisy[:, None],
            table.drop_columns([FLUX, ERROR]).replace_schema_metadata(),
        )
        first_row += len(flux)
