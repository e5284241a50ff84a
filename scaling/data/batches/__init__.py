"""Batches of spectra on the device: node cache, noise, standardisation, evaluation splits."""
