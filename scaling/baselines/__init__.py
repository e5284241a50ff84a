"""Baselines for the Transformer: ridge regression and boosted trees on the pixels of the same spectra."""

from scaling.baselines.settings import Baseline, LightGBM, Ridge

__all__ = ["Baseline", "LightGBM", "Ridge"]
