"""The stellar-spectrum emulator behind the simulated spectra, and their noise model.

A cubic polynomial in (T_eff, log g, [M/H]) gives the noise-free flux (see ``PROVENANCE.md`` for its origin); photon
noise of the object and of the night sky gives the error. Both are smooth functions of the labels.
"""

import functools
from dataclasses import dataclass
from importlib import resources
from itertools import combinations_with_replacement

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray


@dataclass(frozen=True, slots=True)
class Emulator:
    """The embedded emulator on its full grid.

    Attributes:
        coefficients: Flux coefficient of each polynomial term, (20, 4096).
        wave: Pixel centres in vacuum Å, (4096,).
        wave_edges: Pixel edges in vacuum Å, (4097,).
        label_offset: Offset of (T_eff in K, log g in dex, [M/H] in dex), (3,).
        label_scale: Scale of the same labels, (3,).
        sky: Sky brightness of each pixel, with median 1, (4096,).
    """

    coefficients: Float[ndarray, "term pixel"]
    wave: Float[ndarray, " pixel"]
    wave_edges: Float[ndarray, " edge"]
    label_offset: Float[ndarray, " label"]
    label_scale: Float[ndarray, " label"]
    sky: Float[ndarray, " pixel"]


@functools.cache
def load_emulator() -> Emulator:
    """Load the embedded emulator (once per process)."""
    folder = resources.files("scaling.data.simulated.emulator")
    with resources.as_file(folder / "emulator.npz") as path, np.load(path) as arrays:
        wave = arrays["wave"]
        step = (wave[-1] - wave[0]) / (len(wave) - 1)
        with resources.as_file(folder / "oh_lines.csv") as lines:
            sky = _sky_brightness(wave, pd.read_csv(lines))
        return Emulator(
            coefficients=arrays["coefficients"].astype(np.float64),
            wave=wave,
            wave_edges=np.linspace(wave[0] - step / 2, wave[-1] + step / 2, len(wave) + 1),
            label_offset=arrays["label_offset"],
            label_scale=arrays["label_scale"],
            sky=sky,
        )


def air_to_vacuum(wave: Float[ndarray, " line"]) -> Float[ndarray, " line"]:
    """Convert air wavelengths to vacuum (Å), by N. Piskunov's inverse of Morton (2000), as VALD does."""
    inverse_square = (1e4 / wave) ** 2
    index = (
        1.0
        + 8.336624212083e-5
        + 2.408926869968e-2 / (130.1065924522 - inverse_square)
        + 1.599740894897e-4 / (38.92568793293 - inverse_square)
    )
    return wave * index


def _sky_brightness(wave: Float[ndarray, " pixel"], lines: pd.DataFrame) -> Float[ndarray, " pixel"]:
    """A sloping continuum plus the OH lines, each a Gaussian of σ = 0.75 Å, divided by the median."""
    centres = air_to_vacuum(lines["wavelength_air_angstrom"].to_numpy(np.float64))
    peaks = lines["relative_peak"].to_numpy(np.float64)
    profile = np.exp(-0.5 * ((wave[:, None] - centres) / 0.75) ** 2)
    sky = 1.0 + 0.4 * (wave - 7975.0) / 1750.0 + 75.0 * profile @ peaks
    return sky / np.median(sky)


def polynomial_terms(x: Float[ndarray, "row label"]) -> Float[ndarray, "row term"]:
    """All 20 monomials of scaled labels up to third degree: 1, x0, x1, x2, x0², x0x1, …, x1x2², x2³."""
    terms = [np.ones(len(x))]
    for degree in (1, 2, 3):
        terms += [np.prod(x[:, which], axis=1) for which in combinations_with_replacement(range(x.shape[1]), degree)]
    return np.stack(terms, axis=1)


def emulate_flux(labels: Float[ndarray, "row label"]) -> Float[ndarray, "row pixel"]:
    """Noise-free, median-normalised flux on the full grid, (rows, 4096), for T_eff in K, log g and [M/H] in dex."""
    emulator = load_emulator()
    return polynomial_terms((labels - emulator.label_offset) / emulator.label_scale) @ emulator.coefficients


def noise_error(
    flux: Float[ndarray, "row pixel"], brightness: Float[ndarray, " row"], sky: Float[ndarray, " pixel"]
) -> Float[ndarray, "row pixel"]:
    """Standard deviation of the object's and the sky's photon noise, in units of the normalised flux.

    Args:
        flux: Noise-free flux on the full grid, (rows, 4096).
        brightness: Photon count relative to an object of magnitude 21.5, (rows,).
        sky: Sky brightness of each pixel, with median 1, (4096,).
    """
    error = np.maximum(flux, 0.0)
    error *= (2.0 * 0.12 * brightness)[:, None]
    error += sky
    np.sqrt(error, out=error)
    error *= (0.5 * 0.143 / brightness)[:, None]
    return error
