"""Batches of spectra: the node's cache; resident, mapped and streamed batches; evaluation spectra; statistics."""

from scaling.data.batches.bins import SplitBins, bin_numbers, label_edges, snr_edges
from scaling.data.batches.cache import MappedSplit, cache_limit, default_cache_root, map_split
from scaling.data.batches.evaluation import EvaluationSplit, check_labels, evaluation_pin
from scaling.data.batches.noise import FixedNoise, add_noise_
from scaling.data.batches.rules import DataRules, Standardisation
from scaling.data.batches.training import Access, TrainingBatches, training_batches
from scaling.data.batches.whitening import LinearMap, fit_whitening
from scaling.data.batches.worker import Worker

__all__ = [
    "Access",
    "DataRules",
    "EvaluationSplit",
    "FixedNoise",
    "LinearMap",
    "MappedSplit",
    "SplitBins",
    "Standardisation",
    "TrainingBatches",
    "Worker",
    "add_noise_",
    "bin_numbers",
    "cache_limit",
    "check_labels",
    "default_cache_root",
    "evaluation_pin",
    "fit_whitening",
    "label_edges",
    "map_split",
    "snr_edges",
    "training_batches",
]
