"""Simulated spectra: emulator, rows, files, and their information limit."""
