"""HDF5 → shards against its limits: plain reading and plain writing of the same rows with the same number of processes.

    python -m benchmarks.conversion --rows 32768            one size (2.1 GB of flux and error as float64)
    python -m benchmarks.conversion --rows 32768 262144     two sizes: is memory flat?
    python -m benchmarks.conversion --rows 131072 --against 4ffebf9     alternately with the conversion of another commit

Alternately, with one process per core and the files in the page cache (unless ``--cold``): (a) h5py reads flux and error chunk by
chunk, (b) pyarrow writes the same number of shards with the same encoding, synced to disk as ``convert`` does (fsync), (a + b)
both at once, with twice the processes, (c) ``convert`` on Ray Data, excluding Ray's start and the workers' imports. The share is the
slower of (a) and (b) divided by (c), the share of both is (a + b) divided by (c): 1 would mean free checks, statistics and
scheduling; medians over the rounds. Memory is the proportional set size (PSS) of the driver and the workers that convert, sampled
twice a second.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import h5py
import pyarrow.parquet as pq

from benchmarks.other_commit import compare
from scaling.data.hdf5.reader import ERROR_ARRAY, FLUX_ARRAY
from scaling.data.shards.convert import convert
from scaling.data.shards.encode import parquet_options
from scaling.data.shards.read import read_units
from scaling.data.shards.shard import ROW_GROUP_ROWS
from scaling.data.shards.sources import inspect_sources
from scaling.data.simulated.writer import Simulation, write_simulation
from scaling.sweep.cluster import ray_cluster

SHARD_ROWS = 4096


def read_chunks(path, ranges):
    """(a) Read rows as float64, chunk by chunk."""
    with h5py.File(path) as file:
        for start, stop in ranges:
            for name in (FLUX_ARRAY, ERROR_ARRAY):
                file[name][start:stop]


def prepare_write(path, start, stop):
    """Hold the row groups of one shard in this process, for ``write_shards``."""
    global _held
    sources = inspect_sources([path])
    schema = sources.schema
    _held = schema, list(read_units([range(start, stop)], sources, schema.names, range(len(sources.wave))))
    return len(_held[1])


def write_shards(folder, count):
    """(b) Write the held row groups as ``count`` shards."""
    schema, tables = _held
    for number in range(count):
        path = folder / f"{os.getpid()}-{number}.parquet"
        with pq.ParquetWriter(path, schema, **parquet_options(schema)) as writer:
            for table in tables:
                writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def forget(path):
    """Drop a file's pages from memory."""
    os.sync()
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def on_all(pools, function, arguments):
    """Seconds taken by one concurrent call in each process."""
    start = time.perf_counter()
    for call in [pool.submit(function, *given) for pool, given in zip(pools, arguments, strict=True)]:
        call.result()
    return time.perf_counter() - start


@contextmanager
def peak_memory():
    """Yield a dictionary that holds the peaks in MB when the block ends: of all processes, and of one worker."""
    import psutil  # installed with Ray

    driver, peaks, done = psutil.Process(), {"total_mb": 0.0, "worker_mb": 0.0}, threading.Event()

    def pss(process):
        try:
            if process is driver or any(word.startswith("ray::") for word in process.cmdline()):
                return process.memory_full_info().pss / 1e6
        except psutil.Error:
            pass
        return 0.0

    def watch():
        while not done.wait(0.5):
            workers = [pss(process) for process in driver.children(recursive=True)]
            peaks["total_mb"] = max(peaks["total_mb"], pss(driver) + sum(workers))
            peaks["worker_mb"] = max(peaks["worker_mb"], *workers, 0.0)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peaks
    finally:
        done.set()
        thread.join()


def measure(root, rows, processes, rounds, cold):
    """Times and memory for one size, as medians over the rounds."""
    paths = write_simulation(root / f"hdf5-{rows}", Simulation(train=rows, val=64, test=64, seed=rows))
    (path,) = paths["train"]
    ranges = [(start, min(start + SHARD_ROWS, rows)) for start in range(0, rows, SHARD_ROWS)]
    shares = [ranges[at::processes] for at in range(processes)]
    context = multiprocessing.get_context("spawn")
    readers, writers = ([ProcessPoolExecutor(1, mp_context=context) for _ in shares] for _ in range(2))
    prepare = forget if cold else lambda path: on_all(readers, read_chunks, [(path, share) for share in shares])
    found = []
    try:
        for number in range(rounds):
            prepare(path)
            times = plain_times(readers, writers, path, shares, root / "plain", prepare)
            prepare(path)
            with peak_memory() as memory:
                times["convert_s"] = convert_once(root, paths, "source")
            if number == 0:
                shuffled_s = convert_once(root, paths, "shuffled")
            slower = max(times["read_s"], times["write_s"])
            shares_of = {"share": slower / times["convert_s"], "share_of_both": times["both_s"] / times["convert_s"]}
            found.append(times | {"convert_shuffled_s": shuffled_s} | shares_of | memory)
    finally:
        for pool in readers + writers:
            pool.shutdown()
    middle = {name: statistics.median(one[name] for one in found) for name in found[0]}
    return {"rows": rows, "processes": processes, "source_gb": path.stat().st_size / 1e9, "rounds": found} | middle


def plain_times(readers, writers, path, shares, folder, prepare):
    """Seconds for plain reading, plain writing, and both at once."""
    to_read = [(path, share) for share in shares]
    to_write = [(folder, len(share)) for share in shares]
    times = {"read_s": on_all(readers, read_chunks, to_read)}
    on_all(writers, prepare_write, [(path, *shares[0][0])] * len(shares))
    folder.mkdir()
    times["write_s"] = on_all(writers, write_shards, to_write)
    shutil.rmtree(folder)
    folder.mkdir()
    prepare(path)
    with ThreadPoolExecutor(2) as pool:
        start = time.perf_counter()
        both = [
            pool.submit(on_all, readers, read_chunks, to_read),
            pool.submit(on_all, writers, write_shards, to_write),
        ]
        for call in both:
            call.result()
        times["both_s"] = time.perf_counter() - start
    on_all(writers, forget_held, [() for _ in shares])
    shutil.rmtree(folder)
    return times


def forget_held():
    """Release the row groups held by ``prepare_write``."""
    globals().pop("_held")


def convert_once(root, paths, order):
    """Seconds for one conversion."""
    dest = root / f"shards-{order}"
    start = time.perf_counter()
    convert(dest, **paths, rows_per_shard=SHARD_ROWS, order=order)
    seconds = time.perf_counter() - start
    shutil.rmtree(dest)
    return seconds


def show(found):
    """Print the table."""
    columns = {"read_s": "(a) read", "write_s": "(b) write", "both_s": "(a + b)", "convert_s": "(c) convert"}
    columns |= {"share": "share", "share_of_both": "of both", "convert_shuffled_s": "shuffled"}
    columns |= {"total_mb": "peak MB", "worker_mb": "a worker"}
    print(f"{'rows':>8}" + "".join(f"{title:>12}" for title in columns.values()))
    for row in found:
        print(f"{row['rows']:>8}" + "".join(f"{row[name]:>12.{0 if name.endswith('mb') else 2}f}" for name in columns))
    if len(found) > 1:
        first, last = found[0], found[-1]
        more, memory = last["rows"] / first["rows"], last["total_mb"] / first["total_mb"]
        print(f"{more:.1f} × the rows: {memory:.2f} × the memory")


def main():
    """Measure, print a table, and write it as JSON if requested."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[32768])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cold", action="store_true", help="drop the source from the page cache before each reading")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--against", metavar="COMMIT", help="compare with the conversion of another commit instead")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="simulate into this folder, or use what is there")
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    root = options.keep or Path(tempfile.mkdtemp(prefix="conversion-"))
    try:
        # Shards large enough that every worker has started and imported before timing begins.
        warm = write_simulation(root / "warm", Simulation(train=8192 * options.processes, val=1, test=1, pixels=1024))
        if options.against:
            found = [compare(root, rows, options.rounds, options.against) for rows in options.rows]
        else:
            with ray_cluster():
                shutil.rmtree(root / "warm-shards", ignore_errors=True)
                convert(root / "warm-shards", **warm, rows_per_shard=2048)
                shutil.rmtree(root / "warm-shards")
                found = [measure(root, rows, options.processes, options.rounds, options.cold) for rows in options.rows]
            show(found)
    finally:
        if options.keep is None:
            shutil.rmtree(root)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
