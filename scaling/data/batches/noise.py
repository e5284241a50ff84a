"""Fixed noise: one draw a spectrum, the same however the rows are cut into shards or read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32
from numpy import ndarray

from scaling.data.seeds import stable_seed

NOISE_BLOCK_ROWS = 64
"""Rows whose noise is drawn together: part of what a noise seed means."""


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
        """Noisy spectra: max(flux, 0) + level · error · N(0, 1).

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
        noisy = np.empty_like(flux)
        draw = torch.empty(NOISE_BLOCK_ROWS, flux.shape[1])
        stop = first_row + len(flux)
        for block in range(first_row // NOISE_BLOCK_ROWS, -(-stop // NOISE_BLOCK_ROWS)):
            start = block * NOISE_BLOCK_ROWS
            generator = torch.Generator().manual_seed(stable_seed("fixed noise", self.seed, split, block))
            # A whole block always: how PyTorch draws its last few numbers depends on how many are asked for.
            draw.normal_(generator=generator)
            low, high = max(first_row, start), min(stop, start + NOISE_BLOCK_ROWS)
            rows = slice(low - first_row, high - first_row)
            out = np.multiply(draw.numpy()[low - start : high - start], error[rows], out=noisy[rows])
            out *= np.float32(self.level)
            out += np.maximum(flux[rows], 0.0)
        return noisy
