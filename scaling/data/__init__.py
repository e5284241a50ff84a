"""Spectra, from file to batch."""
