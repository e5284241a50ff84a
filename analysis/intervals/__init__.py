"""How far to trust a fit: profile likelihood, predictive distributions, the bootstrap, and the forms weighed together."""
