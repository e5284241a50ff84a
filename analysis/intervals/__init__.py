"""Uncertainty of a fit: profile likelihood, predictive distributions, bootstrap, and weighted combination of forms."""
