"""Cost of the node cache: memory of one and of four processes that map a split, and the speed of building it.

    python -m benchmarks.cache_memory --rows 20000

Memory is the sum of the processes' proportional set sizes (PSS: a page mapped by k processes counts 1/k in each), minus their
memory before mapping. Building is compared with the slower of its two parts alone, with the same number of threads:
decoding the shards with plain pyarrow, and writing the same bytes to the same disk. Simulated spectra, in a temporary
folder (rows × 80 kB at 4096 pixels); $TMPDIR selects the disk.
"""

import argparse
import json
import multiprocessing
import os
import re
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq

from scaling.data.batches import FixedNoise, cachebuild, map_split
from scaling.data.batches.cachebuild import MAX_THREADS
from scaling.data.shards.convert import convert
from scaling.data.shards.manifest import Manifest
from scaling.data.simulated.writer import Simulation, write_simulation
from scaling.sweep.cluster import ray_cluster

THREADS = min(MAX_THREADS, len(os.sched_getaffinity(0)))
NOISE = FixedNoise(seed=0, level=1.0)


def pss() -> int:
    """This process's proportional set size in bytes."""
    return 1024 * int(re.search(r"^Pss:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.M)[1])


def reader(shards: Path, cache: Path, rows: int, barrier, results) -> None:
    """Map and read the whole split, and report the memory used while the other processes still map it."""
    barrier.wait()
    before = pss()
    barrier.wait()
    mapped = map_split(shards, "train", rows, cache, noise=NOISE)
    total = float(mapped.flux.sum(dtype="f8"))
    barrier.wait()
    results.put((pss() - before, total))
    barrier.wait()


def memory(shards: Path, cache: Path, rows: int, readers: int) -> int:
    """Total memory in bytes of several processes that have all read the same split."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(readers), context.Queue()
    processes = [context.Process(target=reader, args=(shards, cache, rows, barrier, results)) for _ in range(readers)]
    for process in processes:
        process.start()
    found = [results.get(timeout=300) for _ in processes]
    for process in processes:
        process.join()
    assert len({total for _, total in found}) == 1
    return sum(size for size, _ in found)


def seconds(function, *arguments) -> float:
    """Wall time of a call that starts when all pending disk writes are done."""
    os.sync()
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def decode(paths: list[Path]) -> None:
    """Decode all columns of the shards, one row group at a time, with plain pyarrow."""

    def one(path: Path) -> None:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                file.read_row_group(group, use_threads=False)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(one, paths))


def write(path: Path, num_bytes: int) -> None:
    """Write as many bytes as the cache, each thread its share of one file, and sync them to disk."""
    piece = os.urandom(2**23)
    file = os.open(path, os.O_WRONLY | os.O_CREAT)
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda at: os.pwrite(file, piece[: num_bytes - at], at), range(0, num_bytes, len(piece))))
    os.fsync(file)
    os.close(file)
    path.unlink()


def building(shards: Path, folder: Path, rows: int, repeats: int) -> list[dict[str, float | str]]:
    """The speed of building flux and error, and the noisy flux alone, compared with that of their parts."""
    manifest = Manifest.load(shards)
    paths = [shards / shard.file for shard in manifest.shards("train")]
    lines = []
    for arrays, noise in (("flux + error", None), ("noisy", NOISE)):
        num_bytes = rows * manifest.pixels * 4 * (1 if noise else 2)
        took: dict[str, list[float]] = {"decode": [], "write": [], "build": [], "verify": []}
        for repeat in range(repeats):
            root = folder / f"cache-{arrays[0]}-{repeat}"
            took["decode"].append(seconds(decode, paths))
            took["write"].append(seconds(write, folder / "bytes", num_bytes))
            took["build"].append(seconds(lambda: map_split(shards, "train", rows, root, noise=noise).close()))  # noqa: B023
            cachebuild._verified.clear()
            took["verify"].append(seconds(lambda: map_split(shards, "train", rows, root, noise=noise).close()))  # noqa: B023
            for path in root.rglob("*.f32"):
                path.unlink()
        median = {name: statistics.median(values) for name, values in took.items()}
        lines.append(
            {"arrays": arrays, "rows_per_s": rows / median["build"], "mb_per_s": num_bytes / median["build"] / 1e6}
            | {f"{name}_s": value for name, value in median.items()}
            | {"ratio": max(median["decode"], median["write"]) / median["build"]}
            | {"verify_gb_per_s": num_bytes / median["verify"] / 1e9}
        )
    return lines


def main() -> None:
    """Create data, measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--pixels", type=int, default=4096)
    parser.add_argument("--rows-per-shard", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cache-memory-") as name:
        folder = Path(name)
        simulation = Simulation(train=options.rows, val=64, test=64, pixels=options.pixels)
        files = write_simulation(folder / "hdf5", simulation)
        with ray_cluster(None):
            convert(folder / "shards", **files, rows_per_shard=options.rows_per_shard)
        for paths in files.values():
            for path in paths:
                path.unlink()
        built = building(folder / "shards", folder, options.rows, options.repeats)
        map_split(folder / "shards", "train", options.rows, folder / "cache", noise=NOISE).close()
        one_copy = options.rows * options.pixels * 4
        used = {k: memory(folder / "shards", folder / "cache", options.rows, k) for k in (1, 4)}
    print(f"{options.rows:,} rows of {options.pixels} pixels, {THREADS} threads; one copy is {one_copy / 1e6:,.0f} MB")
    for readers, size in used.items():
        print(f"  {readers} processes that read it: {size / 1e6:8,.0f} MB together, {size / one_copy:.3f} copies")
    print(
        f"  {'arrays':<14}{'rows/s':>10}{'MB/s':>8}{'build s':>9}{'decode s':>10}{'write s':>9}{'ratio':>7}{'verify GB/s':>13}"
    )
    for line in built:
        print(
            f"  {line['arrays']:<14}{line['rows_per_s']:>10,.0f}{line['mb_per_s']:>8,.0f}{line['build_s']:>9.2f}"
            f"{line['decode_s']:>10.2f}{line['write_s']:>9.2f}{line['ratio']:>7.2f}{line['verify_gb_per_s']:>13.2f}"
        )
    if options.json:
        content = {"rows": options.rows, "one_copy_bytes": one_copy, "pss_bytes": used, "building": built}
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
