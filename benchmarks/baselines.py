"""Ridge and LightGBM against their limits: memory as spectra are added; Ridge's pass against decoding and products.

    python -m benchmarks.baselines

Simulates 8,192 spectra of 4,096 pixels first. Each line is from a separate process.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from scaling.baselines.ridge import fit_ridge
from scaling.baselines.settings import LightGBM
from scaling.baselines.trees import fit_trees
from scaling.data.batches import DataRules, EvaluationSplit, Worker
from scaling.data.shards.convert import convert
from scaling.data.shards.manifest import Manifest
from scaling.data.shards.shard import column_values, leading_rows
from scaling.data.simulated.writer import Simulation, write_simulation
from scaling.data.spectra import ERROR, FLUX

SIZES = 2048, 8192
RULES = DataRules(noise="fixed")
TREES = LightGBM(trees=20)


def bare(manifest: Manifest, size: int) -> float:
    """Seconds to decode the spectra and to accumulate their products in float64."""
    begun, square = time.monotonic(), torch.zeros(manifest.pixels, manifest.pixels, dtype=torch.float64)
    for table in leading_rows(manifest, "train", size, columns=[FLUX, ERROR]):
        column_values(table, ERROR)
        block = torch.from_numpy(column_values(table, FLUX).astype("float64"))
        square.addmm_(block.T, block)
    return time.monotonic() - begun


def measure(folder: Path, what: str, size: int) -> None:
    """Print one line: the duration and the peak memory of the process."""
    torch.set_num_threads(1)
    manifest = Manifest.load(folder / "shards")
    worker = Worker(cache_root=folder / "cache", device=torch.device("cpu"))
    val = EvaluationSplit.load(folder / "shards", RULES, "val", worker)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    if what == "ridge":
        seconds = next(fit_ridge(manifest, RULES, (size,), val)).seconds
    elif what == "lightgbm":
        seconds = fit_trees(TREES, manifest, RULES, size, 0, val).seconds
    else:
        seconds = bare(manifest, size)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{what:>9} {size:>6,} spectra: {seconds:6.1f} s, {peak - before:5.2f} GB beside {before:.2f} GB", flush=True)


def main() -> None:
    """Print all lines."""
    if len(sys.argv) > 1:
        return measure(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = write_simulation(folder / "hdf5", Simulation(train=SIZES[-1], val=256, test=16, pixels=4096))
        convert(folder / "shards", **files, on_ray=False)
        for what in ("bare", "ridge", "lightgbm"):
            for size in SIZES:
                subprocess.run([sys.executable, "-m", "benchmarks.baselines", name, what, str(size)], check=True)


if __name__ == "__main__":
    main()
