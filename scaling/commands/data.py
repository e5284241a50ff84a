"""`scaling simulate`, `inspect`, `shard`, `limit` and `cache`: commands for spectra and files."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

from scaling.commands.common import AddCommand, say, write_json
from scaling.console import counting
from scaling.errors import UserError
from scaling.files import location

SPECTRA_WORTH_A_CLUSTER = 50_000
"""Minimum number of spectra, beyond the largest file, for which starting Ray saves time."""


def add_commands(command: AddCommand) -> None:
    """Add these commands to the parser."""
    sub = command("simulate", _simulate, "Write simulated PFS spectra as DEST/{train_0,...,val,test}/dataset.h5.")
    sub.add_argument("dest", type=Path, metavar="DEST")
    for name, rows in (("train", 32768), ("val", 2048), ("test", 8192)):
        sub.add_argument(f"--{name}", type=int, default=rows, metavar="ROWS")
    sub.add_argument("--train-files", type=int, default=1, help="files the training rows are spread over")
    sub.add_argument("--pixels", type=int, default=4096, help="4096, or binned to 2048 or 1024")
    sub.add_argument("--mag", type=float, nargs=2, default=(20.5, 22.5), metavar=("BRIGHT", "FAINT"))
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--address", help="Ray cluster to use; one is started on this machine for much work otherwise")

    sub = command(
        "inspect",
        _inspect,
        "Say what is in HDF5 files, a folder of <split>/dataset.h5, a shard set, a model file or a store, and what is wrong with it. "
        "Exit status 0: no problem found; 1: problems found; 2: nothing that is known.",
    )
    sub.add_argument("paths", nargs="+", metavar="PATH")
    sub.add_argument("--json", type=Path, metavar="OUT")

    sub = command("shard", _shard, "Convert HDF5 files to Parquet shards; running it again continues.")
    sub.add_argument("dest", type=location, metavar="DEST", help="a folder, or a URI such as s3://bucket/path")
    sub.add_argument("--train", type=Path, nargs="+", required=True, metavar="SRC")
    sub.add_argument("--val", type=Path, nargs="+", required=True, metavar="SRC")
    sub.add_argument("--test", type=Path, nargs="+", required=True, metavar="SRC")
    sub.add_argument("--rows-per-shard", type=int, default=4096)
    sub.add_argument("--order", choices=("auto", "source", "shuffled"), default="auto", help="of the training spectra")
    sub.add_argument("--order-seed", type=int, default=0, metavar="SEED")
    sub.add_argument("--verify", action="store_true", help="afterwards compare all shards with their sources")
    sub.add_argument("--address", help="Ray cluster to use; one is started on this machine otherwise")

    sub = command("limit", _limit, "Print the smallest error that spectra allow (Cramér-Rao), by SNR.")
    sub.add_argument("path", type=location, metavar="PATH", help="an HDF5 file, or a shard set: its test split")
    sub.add_argument("--label", default="log_g", help="what is estimated")
    sub.add_argument(
        "--free",
        type=lambda text: tuple(text.split(",")),
        default=(),
        metavar="LABEL,...",
        help="labels that the flux depends on, for an emulator (default: of T_eff, log_g, M_H, a_M, C_M those that vary)",
    )
    sub.add_argument("--rows", type=int, default=4096, help="spectra to average over, at most")
    sub.add_argument("--noise-level", type=float, default=1.0, metavar="LEVEL", help="multiplies the spectra's errors")
    sub.add_argument("--json", type=Path, metavar="OUT")

    sub = command("cache", _cache, "List the splits in this node's cache of memory maps, or evict them.")
    sub.add_argument("--cache", type=Path, metavar="DIR", help="its folder (default: as for `scaling run`)")
    which = sub.add_mutually_exclusive_group()
    which.add_argument("--evict", action="store_true", help="remove all splits that no process uses")
    which.add_argument("--limit", metavar="GB", help="remove the least recently used until it is no larger")


def _simulate(options: argparse.Namespace) -> int:
    from scaling.data.simulated.writer import Simulation, pending_files, write_simulation
    from scaling.sweep.cluster import ray_cluster

    simulation = Simulation(
        train=options.train,
        val=options.val,
        test=options.test,
        train_files=options.train_files,
        pixels=options.pixels,
        mag_range=tuple(options.mag),
        seed=options.seed,
    )
    pending = pending_files(options.dest, simulation)
    rows = sorted(file.rows for file in pending)
    parallel = len(pending) > 1 and (bool(options.address) or sum(rows[:-1]) >= SPECTRA_WORTH_A_CLUSTER)
    with ray_cluster(options.address) if parallel else contextlib.nullcontext(), counting("spectra", say) as progress:
        written = write_simulation(options.dest, simulation, progress, parallel)
    for split, paths in written.items():
        print(f"{split}: {simulation.rows(split):,} spectra in {', '.join(map(str, paths))}")
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from scaling.inspect import inspect

    with counting("shards", say) as progress:
        found = inspect(options.paths, progress)
    print(found.text)
    write_json(options, found.data)
    return 1 if found.problems else 0


def _shard(options: argparse.Namespace) -> int:
    from scaling.data.shards.convert import convert
    from scaling.data.shards.verify import describe_order, verify
    from scaling.sweep.cluster import ray_cluster

    with ray_cluster(options.address):
        manifest = convert(
            options.dest,
            train=options.train,
            val=options.val,
            test=options.test,
            rows_per_shard=options.rows_per_shard,
            order=options.order,
            order_seed=options.order_seed,
            say=say,
        )
    for split in ("train", "val", "test"):
        print(f"{split}: {manifest.num_rows(split):,} spectra in {len(manifest.shards(split))} shards")
    print(f"order of train: {describe_order(manifest)}")
    for problem in manifest.problems:
        print(f"scaling: warning: {options.dest}: {problem}", file=sys.stderr)
    with counting("verified shards", say) as progress:
        problems = verify(options.dest, True, progress) if options.verify else []
    if problems:
        raise UserError(f"{options.dest}: {'; '.join(problems)}")
    return 0


def _limit(options: argparse.Namespace) -> int:
    from scaling.data.information import information_limit

    with counting("spectra", say) as progress:
        limit = information_limit(
            options.path,
            label=options.label,
            rows=options.rows,
            noise_level=options.noise_level,
            free=options.free,
            progress=progress,
        )
    print(limit.to_text())
    write_json(options, limit.to_json())
    return 0


def _cache(options: argparse.Namespace) -> int:
    from scaling.data.batches.cache import cache_limit, default_cache_root
    from scaling.data.batches.cachefolder import cached_splits, evict
    from scaling.files import size_text

    root = options.cache or default_cache_root()
    limit = None if options.limit is None else cache_limit(options.limit, "--limit")
    if options.evict or limit is not None:
        removed = evict(root, limit)
        print(f"removed {len(removed)} splits, {size_text(sum(split.num_bytes for split in removed))}")
    splits = cached_splits(root)
    print(f"{root}: {len(splits)} splits, {size_text(sum(split.num_bytes for split in splits))}")
    for split in reversed(splits):
        print(split)
    return 0
