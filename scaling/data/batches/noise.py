"""Noise on spectra. Fixed noise is one draw per spectrum, independent of sharding and read order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32
from numpy import ndarray
from torch import Tensor

from scaling.data.seeds import stable_seed

NOISE_BLOCK_ROWS = 64
"""Rows whose noise is drawn together; changing it changes the noise of every seed."""


def add_noise_(
    flux: Float[Tensor, "row pixel"], error: Float[Tensor, "row pixel"], noise: Float[Tensor, "row pixel"], level: float
) -> Float[Tensor, "row pixel"]:
    """In-place max(flux, 0) + level · error · noise, on any device: the flux that a model sees."""
    return flux.clamp_(min=0.0).addcmul_(noise, error, value=level)


@dataclass(frozen=True, slots=True)
class FixedNoise:
    """One noise realisation per spectrum.

    Attributes:
        seed: Seed of the draw.
        level: Multiplies the 1σ errors; 1 is the spectra's own noise.
    """

    seed: int
    level: float

    def add(
        self, flux: Float32[ndarray, "row pixel"], error: Float32[ndarray, "row pixel"], *, split: str, first_row: int
    ) -> Float32[ndarray, "row pixel"]:
        """Noisy spectra, as computed by ``add_noise_``.

        A row's draw, from PyTorch's CPU generator, depends only on (seed, split, row) for a given number of pixels,
        whichever rows are requested together.

        Args:
            flux: Noise-free flux of consecutive rows.
            error: One standard deviation of each pixel's noise, in units of the flux.
            split: ``train``, ``val`` or ``test``.
            first_row: Index in the split of the first row.

        Returns:
            A new array; ``flux`` and ``error`` are not modified.
        """
        noisy = torch.from_numpy(flux.copy())
        sigma = torch.from_numpy(np.require(error, requirements="W"))  # PyTorch warns about Arrow's read-only arrays
        draw = torch.empty(NOISE_BLOCK_ROWS, flux.shape[1])
        stop = first_row + len(flux)
        for block in range(first_row // NOISE_BLOCK_ROWS, -(-stop // NOISE_BLOCK_ROWS)):
            start = block * NOISE_BLOCK_ROWS
            generator = torch.Generator().manual_seed(stable_seed("fixed noise", self.seed, split, block))
            # Always a whole block: the last few numbers that PyTorch draws depend on how many are requested.
            draw.normal_(generator=generator)
            low, high = max(first_row, start), min(stop, start + NOISE_BLOCK_ROWS)
            rows = slice(low - first_row, high - first_row)
            add_noise_(noisy[rows], sigma[rows], draw[low - start : high - start], self.level)
        return noisy.numpy()
