"""Small HDF5 files in the PFS layout, of any number of pixels, for tests that are not about spectra."""

import h5py
import numpy as np
import pandas as pd

from scaling.data.hdf5.reader import ERROR_ARRAY, FLUX_ARRAY, WAVE

KINDS = ("G", "K", "Å")


def write_file(path, rows, pixels=16, seed=0, **layout):
    """Write a file of random spectra and return what is in it, as ``read_source`` columns would have it."""
    random = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    flux, error = random.normal(5, 1, (rows, pixels)), random.uniform(0.5, 1, (rows, pixels))
    params = pd.DataFrame(
        {
            "log_g": random.normal(3, 1, rows),
            "T_eff": random.normal(5000, 500, rows).astype(np.float32),
            "count": random.integers(0, 9, rows).astype(np.int32),
            "kind": [KINDS[at % 3] for at in range(rows)],
            "snr": random.uniform(1, 9, rows),
        }
    )
    with h5py.File(path, "w") as file:
        file[WAVE] = np.linspace(4000.0, 5000.0, pixels)
        for name, values in ((FLUX_ARRAY, flux), (ERROR_ARRAY, error)):
            file.create_dataset(name, data=values, **layout)
    params.to_hdf(path, key="dataset/params", format="table")
    return {"flux": flux.astype(np.float32), "error": error.astype(np.float32), **params.to_dict("series")}


def write_splits(root, **rows):
    """Write a file of 8 pixels for each of ``train``, ``val`` and ``test``; their paths by split, as ``convert`` takes them."""
    for seed, (split, count) in enumerate(rows.items()):
        write_file(root / f"{split}.h5", count, 8, seed)
    return {split: [root / f"{split}.h5"] for split in rows}
