"""Why shards are byte-stream-split and zstd-1: encodings and codecs on simulated flux and error, one core.

    python -m benchmarks.encodings [--rows 4096]

MB are of float32 values; the ratio is their size divided by the file size.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from scaling.data.shards.encode import parquet_options
from scaling.data.shards.read import read_units
from scaling.data.shards.shard import ROW_GROUP_ROWS
from scaling.data.shards.sources import inspect_sources
from scaling.data.simulated.writer import Simulation, write_simulation
from scaling.data.spectra import ERROR, FLUX, ROW_ID

CODECS = {
    "none": {"compression": "none"},
    "zstd-1": {},
    "zstd-3": {"compression_level": 3},
    "lz4": {"compression": "lz4"},
}


def measure(tables, schema, path, split, codec):
    """Seconds to write and to read the tables, and the file size."""
    options = parquet_options(schema) | CODECS[codec]
    if options["compression"] != "zstd":
        options.pop("compression_level")
    if not split:
        options.pop("column_encoding")
    start = time.perf_counter()
    with pq.ParquetWriter(path, schema, **options) as writer:
        for table in tables:
            writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
    written = time.perf_counter()
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        for group in range(file.num_row_groups):
            file.read_row_group(group, use_threads=False)
    return written - start, time.perf_counter() - written, path.stat().st_size


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4096)
    rows = parser.parse_args().rows
    pa.set_cpu_count(1)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_simulation(Path(folder), Simulation(train=rows, val=1, test=1))
        sources, names = inspect_sources(paths["train"]), [ROW_ID, FLUX, ERROR]
        schema = pa.schema([sources.schema.field(name) for name in names])
        megabytes = rows * len(sources.wave) * 8 / 1e6
        tables = list(read_units([range(rows)], sources, names, range(len(sources.wave))))
        print(f"{'encoding':<20}{'codec':<8}{'write MB/s':>11}{'read MB/s':>11}{'ratio':>7}")
        for split, codec in itertools.product((False, True), CODECS):
            # the best of three: the first run allocates memory that the others reuse
            runs = [measure(tables, schema, Path(folder) / "x.parquet", split, codec) for _ in range(3)]
            write, read, size = (min(values) for values in zip(*runs, strict=True))
            encoding = "byte-stream-split" if split else "plain"
            print(
                f"{encoding:<20}{codec:<8}{megabytes / write:>11.0f}{megabytes / read:>11.0f}{megabytes * 1e6 / size:>7.2f}"
            )


if __name__ == "__main__":
    main()
