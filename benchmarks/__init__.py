"""Measured ratios against theoretical or practical limits, one script per claim."""
