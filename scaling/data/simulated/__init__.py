"""Simulated spectra: emulator, rows, files, and their label derivatives."""

from scaling.data.simulated.rows import Simulation, simulate_rows, wavelength_grid
from scaling.data.simulated.writer import write_simulation

__all__ = ["Simulation", "simulate_rows", "wavelength_grid", "write_simulation"]
