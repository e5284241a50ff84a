"""Mean and covariance of training spectra as a model sees them, and covariance with labels, in one float64 pass."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from numpy import ndarray
from torch import Tensor

from scaling.data.batches.rules import DataRules, Standardisation
from scaling.data.shards.manifest import Manifest


class Moments:
    """Running sums over spectra and their normalised labels; the moments can be read at any time.

    Noise-free spectra enter with the expectation over their noise: independent noise adds level² · ⟨error²⟩ to each pixel's
    variance and nothing else, so none is drawn.
    """

    def __init__(self, manifest: Manifest, rules: DataRules, device: torch.device, labels: int = 0) -> None:
        # Sums are taken about a point near the mean; otherwise the covariance is a small difference of large numbers.
        self._origin = manifest.pixel_statistics()["flux_mean"]
        found = Standardisation.of(manifest.dest, rules)
        self._offset, self._scale = (a.astype(np.float64) for a in (found.flux_offset, found.flux_scale))
        self._level, self._device = rules.noise_level, device
        self.rows = 0
        self._total, self._error_square = np.zeros(manifest.pixels), np.zeros(manifest.pixels)
        self._square = torch.zeros(manifest.pixels, manifest.pixels, dtype=torch.float64, device=device)
        self._labels, self._product = np.zeros(labels), np.zeros((manifest.pixels, labels))

    def add(
        self,
        flux: Float32[ndarray, "row pixel"],
        error: Float32[ndarray, "row pixel"] | None,
        labels: Float[ndarray, "row label"] | None = None,
    ) -> None:
        """Add spectra: noise-free ones with their 1σ errors, or noisy ones without errors."""
        values = flux.astype(np.float64)
        if error is not None:
            np.maximum(values, 0.0, out=values)
            self._error_square += np.einsum("rp,rp->p", error.astype(np.float64), error)
        values -= self._origin
        self.rows += len(values)
        self._total += values.sum(axis=0)
        block = torch.from_numpy(values).to(self._device)
        self._square.addmm_(block.T, block)
        if labels is not None:
            targets = labels.astype(np.float64)
            self._labels += targets.sum(axis=0)
            self._product += values.T @ targets

    def standardised(self) -> tuple[Float64[Tensor, " pixel"], Float64[Tensor, "pixel pixel"]]:
        """Mean and covariance of the standardised noisy flux, with the covariance on the device."""
        shift = self._total / self.rows
        square = self._square / self.rows
        moved = torch.from_numpy(shift).to(self._device)
        square.addr_(moved, moved, alpha=-1)
        noise = self._level**2 * self._error_square / self.rows
        square.diagonal().add_(torch.from_numpy(noise).to(self._device))
        unit = torch.from_numpy(self._scale).to(self._device)
        mean = torch.from_numpy((self._origin + shift - self._offset) / self._scale).to(self._device)
        return mean, square.div_(unit).div_(unit[:, None])

    def with_labels(self) -> tuple[Float64[ndarray, " label"], Float64[ndarray, "pixel label"]]:
        """The labels' mean, and their covariance with the standardised flux."""
        mean = self._labels / self.rows
        product = self._product / self.rows - np.outer(self._total / self.rows, mean)
        return mean, product / self._scale[:, None]
