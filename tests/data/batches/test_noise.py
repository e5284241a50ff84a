import numpy as np
import pytest
import torch

from scaling.data.batches.noise import NOISE_BLOCK_ROWS, FixedNoise
from scaling.data.seeds import stable_seed

ROWS, PIXELS = 300, 16
FLUX = np.random.default_rng(0).normal(1, 1, (ROWS, PIXELS)).astype(np.float32)
ERROR = np.random.default_rng(1).uniform(0.1, 2, (ROWS, PIXELS)).astype(np.float32)


def noisy(first_row=0, stop=ROWS, split="train", seed=3, level=1.0):
    rows = slice(first_row, stop)
    return FixedNoise(seed, level).add(FLUX[rows], ERROR[rows], split=split, first_row=first_row)


@pytest.mark.parametrize("cut", [1, 7, NOISE_BLOCK_ROWS, 100, 299])
def test_a_rows_noise_is_the_same_however_the_rows_are_cut(cut):
    pieces = [noisy(start, min(start + cut, ROWS)) for start in range(0, ROWS, cut)]
    assert np.array_equal(np.concatenate(pieces), noisy())


def test_the_noise_is_the_blocks_draw():
    generator = torch.Generator().manual_seed(stable_seed("fixed noise", 3, "train", 2))
    draw = torch.randn(NOISE_BLOCK_ROWS, PIXELS, generator=generator).numpy()
    block = slice(2 * NOISE_BLOCK_ROWS, 3 * NOISE_BLOCK_ROWS)
    np.testing.assert_allclose(noisy()[block], FLUX[block].clip(0) + draw * ERROR[block], rtol=0, atol=1e-6)


def test_the_noise_is_standard_normal_times_error_and_level():
    for level in (0.5, 1.0, 2.0):
        draw = (noisy(level=level) - FLUX.clip(0)) / ERROR / level
        assert draw.mean() == pytest.approx(0, abs=0.05)
        assert draw.std() == pytest.approx(1, abs=0.05)


def test_no_noise_is_the_clipped_flux():
    assert np.array_equal(noisy(level=0.0), FLUX.clip(0))


def test_blocks_splits_and_seeds_have_noise_of_their_own():
    draws = [noisy(seed=seed, split=split) for seed in (3, 4) for split in ("train", "val")]
    draws = [(draw - FLUX.clip(0)) / ERROR for draw in draws]
    blocks = [draw[start : start + NOISE_BLOCK_ROWS].ravel() for draw in draws for start in (0, NOISE_BLOCK_ROWS)]
    assert np.abs(np.corrcoef(blocks) - np.eye(len(blocks))).max() < 0.15


def test_the_spectra_are_left_alone():
    flux, error = FLUX.copy(), ERROR.copy()
    noisy()
    assert np.array_equal(flux, FLUX)
    assert np.array_equal(error, ERROR)
