"""Noise on spectra, and fixed noise: one draw a spectrum, the same however the rows are cut into shards or read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32
from numpy import ndarray
from torch import Tensor

from scaling.data.seeds import stable_seed

NOISE_BLOCK_ROWS = 64
"""Rows whose noise is drawn together: part of what a noise seed means."""


def add_noise_(
    flux: Float[Tensor, "row pixel"], error: Float[Tensor, "row pixel"], noise: Float[Tensor, "row pixel"], level: float
) -> Float[Tensor, "row pixel"]:
    """max(flux, 0) + level · error · noise in the place of ``flux``, on any device: what a model sees of a spectrum."""
    return flux.clamp_(min=0.0).addcmul_(noise, error, value=level)


@dataclass(frozen=True, slots=True)
class FixedNoise:
    """One noise realisation of every spectrum.

    Attributes:
        seed: Of the draw.
        level: Multiplies the 1σ errors; 1 is the spectra's own noise.
    """

    seed: int
    level: float

    def add(
        self, flux: Float32[ndarray, "row pixel"], error: Float32[ndarray, "row pixel"], *, split: str, first_row: int
    ) -> Float32[ndarray, "row pixel"]:
        """Noisy spectra, as ``add_noise_`` makes them.

        A row's draw, by PyTorch's generator on the CPU, follows from (seed, split, row) alone, for a given number of
        pixels: whichever rows are asked for together.

        Args:
            flux: Noise-free flux of successive rows.
            error: One standard deviation of each pixel's noise, in units of the flux.
            split: ``train``, ``val`` or ``test``.
            first_row: Place in the split of the first row given.

        Returns:
            A new array; ``flux`` and ``error`` are left as they are.
        """
        noisy = torch.from_numpy(flux.copy())
        sigma = torch.from_numpy(np.require(error, requirements="W"))  # PyTorch warns of what Arrow makes read-only
        draw = torch.empty(NOISE_BLOCK_ROWS, flux.shape[1])
        stop = first_row + len(flux)
        for block in range(first_row // NOISE_BLOCK_ROWS, -(-stop // NOISE_BLOCK_ROWS)):
            start = block * NOISE_BLOCK_ROWS
            generator = torch.Generator().manual_seed(stable_seed("fixed noise", self.seed, split, block))
            # A whole block always: how PyTorch draws its last few numbers depends on how many are asked for.
            draw.normal_(generator=generator)
            low, high = max(first_row, start), min(stop, start + NOISE_BLOCK_ROWS)
            rows = slice(low - first_row, high - first_row)
            add_noise_(noisy[rows], sigma[rows], draw[low - start : high - start], self.level)
        return noisy.numpy()
