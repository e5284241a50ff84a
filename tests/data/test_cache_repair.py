import numpy as np

from scaling.data.cache import map_split


def test_a_map_that_lost_a_file_is_built_again(shards, tmp_path):
    expected = np.array(map_split(shards, "train", 100, tmp_path).flux)
    (lost,) = tmp_path.glob("*/*/flux.npy")
    lost.unlink()
    assert np.array_equal(map_split(shards, "train", 100, tmp_path).flux, expected)
