"""Ratios against the limits, one script a claim."""
