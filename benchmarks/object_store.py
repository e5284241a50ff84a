"""A node's cache filled from an object store against one filled from a local folder, measured alternately.

    python -m benchmarks.object_store [--rows 8192] [--rounds 3]

The store is the S3-compatible server of the tests, on loopback of this machine, so that it shares the CPU with the
decoding: this measures the cost of requests, not of a network.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from scaling.data.batches import map_split
from scaling.data.shards.convert import convert
from scaling.data.simulated import Simulation, write_simulation
from scaling.folder import Folder
from scaling.sweep.cluster import ray_cluster
from tests import s3


def copy(source: Folder, dest: Folder) -> None:
    """Copy a shard set."""
    for folder in ("", *source.folders()):
        for name in source.files(folder):
            path = f"{folder}/{name}".lstrip("/")
            dest.write(path, source.read(path) or b"")


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def main() -> None:
    """Measure, and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    os.environ.update(s3.CREDENTIALS)
    with tempfile.TemporaryDirectory(prefix="object-store-") as name, s3.server(_made(Path(name) / "s3")) as server:
        root = Path(name)
        files = write_simulation(root / "hdf5", Simulation(train=options.rows, val=1, test=1))
        with ray_cluster():
            convert(root / "shards", **files)
        copy(Folder.at(root / "shards"), Folder.at(s3.location(server.port, "shards")))
        rates: dict[str, list[float]] = {"local": [], "s3": []}
        for _ in range(options.rounds):
            for kind, place in (("local", str(root / "shards")), ("s3", s3.location(server.port, "shards"))):
                started = time.perf_counter()
                mapped = map_split(place, "train", options.rows, root / "cache")
                rates[kind].append(mapped.spectra.nbytes / (time.perf_counter() - started) / 1e6)
                mapped.close()
                shutil.rmtree(root / "cache")
    for kind, found in rates.items():
        print(f"{kind}: {', '.join(f'{rate:.0f}' for rate in found)} MB/s of flux and error")
    ratio = statistics.median(b / a for a, b in zip(rates["local"], rates["s3"], strict=True))
    print(f"s3 ÷ local: {ratio:.2f} (median of the rounds)")


if __name__ == "__main__":
    main()
