"""Simulated PFS spectra: labels sampled as by the real set's generator, flux and error from the emulator.

A spectrum is a function of (seed, split, row) only: rows are drawn in fixed blocks, each from its own counter-based random
stream, so that the result does not depend on chunks, workers or the number of files.
"""

import functools
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray

from scaling.data.simulated.emulator import emulate_flux, load_emulator, noise_error
from scaling.data.spectra import Pixels, spectrum_snr
from scaling.errors import UserError
from scaling.parse import Count, Natural, declared

SPLITS = ("train", "val", "test")
FULL_PIXELS = 4096
BLOCK_ROWS = 64
"""Rows drawn together; changing it changes every spectrum of every seed."""

LABELS = ("T_eff", "log_g", "M_H", "C_M", "a_M")
LABEL_LOW = np.array([3750.0, 1.0, -2.5, -0.75, -0.25])
LABEL_HIGH = np.array([6000.0, 5.0, 0.5, 0.5, 0.5])
LABEL_STEP = np.array([250.0, 0.5, 0.25, 0.25, 0.25])

COLUMNS = (
    *("id", "redshift", "redshift_err", "exp_count", "exp_time", "seeing", "ext"),
    *("target_zenith_angle", "target_field_angle", "moon_zenith_angle", "moon_target_angle", "moon_phase"),
    *("snr", "mag", "fiberid", "cont_fit", "random_seed"),
    *("Fe_H", "Fe_H_err", "M_H", "M_H_err", "a_M", "a_M_err", "C_M", "C_M_err", "O_M", "O_M_err"),
    *("T_eff", "T_eff_err", "log_g", "log_g_err", "N_He", "v_turb", "L_H", "interp_param"),
)
"""The parameter table's columns, in the order of a real file."""

CONSTANTS: dict[str, float] = {
    **dict.fromkeys(("redshift", "redshift_err", "target_zenith_angle", "target_field_angle"), 0.0),
    **dict.fromkeys(("moon_zenith_angle", "moon_target_angle", "moon_phase"), 0.0),
    "exp_count": 12,
    "exp_time": 900.0,
    "seeing": 1.0,
}
"""Constant columns; a column that is neither here nor simulated is all NaN, as in a real file."""


@declared
class Simulation:
    """Specification of simulated spectra: numbers, brightness and grid; out-of-range fields raise a `UserError`.

    Attributes:
        train: Spectra of the training split; likewise ``val`` and ``test``.
        seed: Root of all random numbers, in [0, 2^63).
        pixels: 4096, or 2048 or 1024 for means of 2 or 4 adjacent pixels.
        mag_range: Range of the uniform i-band magnitude distribution (bright limit first).
        train_files: Number of files that the training split is divided into.
    """

    train: Count = 32768
    val: Count = 2048
    test: Count = 8192
    seed: Natural = 0
    pixels: int = FULL_PIXELS
    mag_range: tuple[float, float] = (20.5, 22.5)
    train_files: Count = 1

    def __post_init__(self) -> None:
        if self.pixels not in (4096, 2048, 1024):
            raise UserError(f"Simulation.pixels = {self.pixels}: give 4096, 2048 or 1024")
        if self.mag_range[0] > self.mag_range[1]:
            raise UserError(f"Simulation.mag_range = {self.mag_range}: give the smaller (brighter) magnitude first")
        if self.train_files > self.train:
            raise UserError(
                f"Simulation.train_files = {self.train_files}: give 1 to {self.train}, the training spectra"
            )

    def rows(self, split: str) -> int:
        """The number of spectra in ``split``."""
        return {"train": self.train, "val": self.val, "test": self.test}[split]


class SimulatedRows(NamedTuple):
    """Consecutive simulated spectra.

    The flux is noise-free, with median 0.5; the error is one standard deviation of each pixel's noise; both are float64.
    ``params`` has the 35 columns of a real file; its ``snr`` is that of the stored pixels, after binning.
    """

    flux: Pixels
    error: Pixels
    params: pd.DataFrame


def _sum_pixels(values: Pixels, factor: int) -> Float[ndarray, "row bin"]:
    """Sum groups of ``factor`` adjacent pixels (with strided sums: a reduction over so short an axis is slow)."""
    return functools.reduce(np.add, (values[:, offset::factor] for offset in range(factor)))


def _simulate_block(simulation: Simulation, split: str, block: int) -> SimulatedRows:
    """Simulate one whole block with its varying parameters; a product's rounding may depend on its shape.

    Labels are uniform; in each row, all axes but one are snapped to the grid.
    """
    stream = SPLITS.index(split) << 56 | block
    rng = np.random.Generator(np.random.Philox(key=np.array([simulation.seed, stream], dtype=np.uint64)))
    labels = rng.uniform(LABEL_LOW, LABEL_HIGH, size=(BLOCK_ROWS, len(LABELS)))
    free_axis = rng.integers(len(LABELS), size=BLOCK_ROWS)
    snapped = np.round(labels / LABEL_STEP) * LABEL_STEP + 0.0  # + 0.0 turns −0.0 into 0.0
    labels = np.where(np.arange(len(LABELS)) == free_axis[:, None], labels, snapped)
    mag = rng.uniform(*simulation.mag_range, size=BLOCK_ROWS)
    brightness = 10.0 ** (-0.4 * (mag - 21.5)) * np.exp(0.1 * rng.standard_normal(BLOCK_ROWS))

    flux = emulate_flux(labels[:, :3])
    error = noise_error(flux, brightness, load_emulator().sky)
    if (factor := FULL_PIXELS // simulation.pixels) > 1:
        flux = _sum_pixels(flux, factor) / factor
        error = np.sqrt(_sum_pixels(np.square(error, out=error), factor)) / factor

    params = pd.DataFrame(labels, columns=list(LABELS)).assign(
        id=block * BLOCK_ROWS + np.arange(BLOCK_ROWS),
        mag=mag,
        snr=spectrum_snr(flux, error).astype(float),
        interp_param=np.array(LABELS)[free_axis],
    )
    return SimulatedRows(flux, error, params)


def simulate_rows(simulation: Simulation, split: str, start: int, stop: int) -> SimulatedRows:
    """Simulate rows ``start`` to ``stop`` of a split (``train``, ``val`` or ``test``), bit-identical for any range.

    Raises:
        ValueError: The range is empty or outside the split.
    """
    if not 0 <= start < stop <= simulation.rows(split):
        raise ValueError(f"rows {start} to {stop} of {split}: give a range within 0 to {simulation.rows(split)}")
    blocks = range(start // BLOCK_ROWS, (stop - 1) // BLOCK_ROWS + 1)
    first = blocks.start * BLOCK_ROWS
    flux, error = np.empty((2, len(blocks) * BLOCK_ROWS, simulation.pixels))
    drawn = []
    for block in blocks:
        rows = slice(block * BLOCK_ROWS - first, (block + 1) * BLOCK_ROWS - first)
        flux[rows], error[rows], params = _simulate_block(simulation, split, block)
        drawn.append(params)
    table = pd.concat(drawn).reindex(columns=list(COLUMNS)).assign(**CONSTANTS)
    wanted = slice(start - first, stop - first)
    return SimulatedRows(flux[wanted], error[wanted], table[wanted].reset_index(drop=True))


def wavelength_grid(pixels: int) -> tuple[Float[ndarray, " pixel"], Float[ndarray, " edge"]]:
    """Pixel centres and edges, in vacuum Å, of spectra with this number of pixels."""
    emulator = load_emulator()
    factor = FULL_PIXELS // pixels
    return emulator.wave.reshape(pixels, factor).mean(axis=1), emulator.wave_edges[::factor]
