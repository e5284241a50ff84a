"""Gradient-boosted trees on noisy spectra, by LightGBM: binned once, block by block, at one byte per pixel."""

from __future__ import annotations

import time
from typing import Any

import lightgbm
import numpy as np
import torch
from jaxtyping import Float32, Float64
from numpy import ndarray

from scaling.baselines.fitted import Fitted
from scaling.baselines.settings import LightGBM
from scaling.baselines.spectra import training_labels
from scaling.data.batches import DataRules, EvaluationSplit, FixedNoise, Standardisation
from scaling.data.seeds import stable_seed
from scaling.data.shards.manifest import Manifest
from scaling.data.shards.shard import column_values, row_groups
from scaling.data.spectra import ERROR, FLUX

SAMPLE_ROWS = 20_000
"""Number of spectra, held as float64, from which the bin edges are computed."""
HUBER = 0.3
"""Huber delta in standard deviations of the label: between MSE, which learns faster, and MAE."""


class NoisySpectra(lightgbm.Sequence):
    """The first `count` training spectra, standardised, under one noise draw; holds one shard at a time.

    LightGBM reads them as float64: first a random sample by row, then all in batches.

    Args:
        manifest: The manifest of the shards.
        rules: How spectra become inputs.
        count: Length of the prefix.
        seed: Seed of the noise draw.
    """

    def __init__(self, manifest: Manifest, rules: DataRules, count: int, seed: int) -> None:
        self._manifest, self._count = manifest, count
        self._noise = FixedNoise(seed, rules.noise_level)
        self._standardise = Standardisation.of(manifest.dest, rules).flux_on(torch.device("cpu"))
        self._held, self._flux = -1, np.empty((0, manifest.pixels), np.float32)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: Any) -> Float64[ndarray, ...]:
        size = self._manifest.rows_per_shard
        if not isinstance(place, slice):
            shard, row = divmod(int(place), size)
            return self._shard(shard)[row].astype(np.float64)
        start, stop, _ = place.indices(len(self))
        shards = range(start // size, -(-stop // size))
        parts = [self._shard(shard)[max(0, start - shard * size) : stop - shard * size] for shard in shards]
        return np.concatenate(parts, dtype=np.float64)

    def _shard(self, number: int) -> Float32[ndarray, "row pixel"]:
        if number != self._held:
            first, file = number * self._manifest.rows_per_shard, self._manifest.shards("train")[number].file
            parts = []
            for table in row_groups(self._manifest.folder, file, columns=[FLUX, ERROR]):
                flux, error = column_values(table, FLUX), column_values(table, ERROR)
                noisy = self._noise.add(flux, error, split="train", first_row=first)
                parts.append(self._standardise(torch.from_numpy(noisy)).numpy())
                first += len(flux)
            self._held, self._flux = number, np.concatenate(parts)
        return self._flux


def fit_trees(
    setting: LightGBM, manifest: Manifest, rules: DataRules, num_spectra: int, seed: int, val: EvaluationSplit
) -> Fitted:
    """Fit boosted trees to the first `num_spectra` training spectra, one sequence of trees per label.

    The same declaration gives the same trees for any number of threads (LightGBM's `deterministic`).

    Raises:
        UserError: A shard is damaged, or a label is not finite.
    """
    begun, fixed = time.monotonic(), rules.noise == "fixed"
    seeds = [rules.noise_seed] if fixed else [stable_seed("trees", seed, draw) for draw in range(setting.draws)]
    labels = np.tile(training_labels(manifest, rules, num_spectra), (len(seeds), 1))
    settings = _settings(setting, rules, seed)
    data = lightgbm.Dataset(
        [NoisySpectra(manifest, rules, num_spectra, each) for each in seeds], params=settings
    ).construct()
    flux, truth = val.flux.numpy(), val.labels.numpy()
    boosters = []
    for output in range(labels.shape[1]):
        data.set_label(np.ascontiguousarray(labels[:, output]))
        scored = data.create_valid(flux, np.ascontiguousarray(truth[:, output]))
        stop = lightgbm.early_stopping(setting.patience, verbose=False)
        boosters.append(lightgbm.train(settings, data, setting.trees, valid_sets=[scored], callbacks=[stop]))

    def predict(spectra: Float32[ndarray, "row pixel"]) -> Float64[ndarray, "row label"]:
        found = [np.asarray(booster.predict(spectra, raw_score=True, num_threads=setting.cpus)) for booster in boosters]
        return np.stack(found, axis=-1)

    return Fitted(
        predict=predict,
        num_spectra=num_spectra,
        num_params=sum(map(_numbers, boosters)),
        steps=sum(booster.best_iteration for booster in boosters),
        samples_seen=len(labels),
        train_flops=np.nan,
        lr=setting.learning_rate,
        penalty=0.0,
        seconds=time.monotonic() - begun,
    )


def _settings(setting: LightGBM, rules: DataRules, seed: int) -> dict[str, Any]:
    classified = rules.boundary is not None
    return {
        "objective": "binary" if classified else "huber",
        "alpha": HUBER,
        "metric": "binary_error" if classified else "l1",
        "learning_rate": setting.learning_rate,
        "num_leaves": setting.leaves,
        "feature_fraction": setting.pixel_fraction,
        "max_bin": setting.bins,
        "bin_construct_sample_cnt": SAMPLE_ROWS,
        "seed": seed % 2**31,
        "deterministic": True,
        "force_col_wise": True,  # row-wise would hold the bins twice
        "num_threads": setting.cpus,
        "verbosity": -1,
    }


def _numbers(booster: lightgbm.Booster) -> int:
    """Number of parameters in the trees used: a threshold and a pixel per split, and a value per leaf."""
    trees = booster.dump_model(num_iteration=booster.best_iteration)["tree_info"]
    return sum(3 * tree["num_leaves"] - 2 for tree in trees)
