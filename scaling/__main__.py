"""The command line: operational flags only; a study's science is in its module. Exit status 0 done, 1 failed, 2 user's mistake."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from scaling.errors import UserError

SPECTRA_WORTH_A_CLUSTER = 50_000
"""Spectra written beside the longest file from which the seconds that Ray takes to start are made good."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; a user's mistake is one line on stderr and status 2."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except UserError as error:
        print(f"scaling: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError, FileExistsError) as error:
        print(f"scaling: {error.filename}: {error.strerror}; give another path, or mend this one", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("scaling: interrupted; the same command continues from here", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scaling", description="Scaling studies of spectrum Transformers on Ray.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=function)
        return sub

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
        "Say what is in HDF5 files, a folder of <split>/dataset.h5, a shard set or a store, and what is wrong with it. "
        "Exit status 0: no problem found; 1: problems found; 2: nothing that is known.",
    )
    sub.add_argument("paths", nargs="+", metavar="PATH")
    sub.add_argument("--json", type=Path, metavar="OUT")

    sub = command("shard", _shard, "Convert HDF5 files to Parquet shards; running it again continues.")
    sub.add_argument("dest", type=Path, metavar="DEST")
    sub.add_argument("--train", type=Path, nargs="+", required=True, metavar="SRC")
    sub.add_argument("--val", type=Path, nargs="+", required=True, metavar="SRC")
    sub.add_argument("--test", type=Path, nargs="+", required=True, metavar="SRC")
    sub.add_argument("--rows-per-shard", type=int, default=4096)
    sub.add_argument("--order", choices=("auto", "source", "shuffled"), default="auto", help="of the training spectra")
    sub.add_argument("--order-seed", type=int, default=0, metavar="SEED")
    sub.add_argument("--verify", action="store_true", help="afterwards compare all shards with their sources")
    sub.add_argument("--address", help="Ray cluster to use; one is started on this machine otherwise")

    sub = command("limit", _limit, "Print the smallest error that simulated spectra allow (Cramér-Rao), by SNR.")
    sub.add_argument("path", type=Path, metavar="PATH", help="an HDF5 file, or a shard set: its test split")
    sub.add_argument("--label", default="log_g", help="T_eff, log_g or M_H")
    sub.add_argument("--rows", type=int, default=4096, help="spectra to average over, at most")
    sub.add_argument("--noise-level", type=float, default=1.0, metavar="LEVEL", help="multiplies the spectra's errors")
    sub.add_argument("--json", type=Path, metavar="OUT")

    sub = command("plan", _plan, "Print a study's cells, parameters, FLOPs and hours; runs nothing.")
    sub.add_argument("study", metavar="STUDY", help="a module such as experiments.demo, or a file")
    sub.add_argument("--tflops", type=float, default=312.0, help="peak of one device (default: an A100 in bf16)")
    sub.add_argument("--mfu", type=float, default=0.2, help="fraction of it that training reaches")
    sub.add_argument("--json", type=Path, metavar="OUT")

    sub = command("run", _run, "Run a study, or continue it: data, sweep, rows, report.")
    _study_and_store(sub)
    sub.add_argument("--address", help="Ray cluster to use; one is started on this machine otherwise")
    sub.add_argument("--cache", type=Path, metavar="DIR", help="folder for the nodes' memory maps")
    sub.add_argument(
        "--cache-limit", type=float, metavar="GB", help="what the maps of a node may take; also $SCALING_CACHE_LIMIT"
    )
    sub.add_argument("--retry-failed", action="store_true", help="try trials again whose row says failed")

    sub = command("cache", _cache, "List the splits in this node's cache of memory maps, or evict them.")
    sub.add_argument("--cache", type=Path, metavar="DIR", help="its folder (default: as for `scaling run`)")
    which = sub.add_mutually_exclusive_group()
    which.add_argument("--evict", action="store_true", help="remove all splits that no process uses")
    which.add_argument("--limit", type=float, metavar="GB", help="remove the least recently used until it is no larger")

    sub = command("status", _status, "Say how far a study is.")
    _study_and_store(sub)
    sub.add_argument("--json", type=Path, metavar="OUT")

    _study_and_store(command("collect", _collect, "Gather a study's rows into results.parquet."))
    _study_and_store(command("report", _report, "Fit the law and write report/index.html."))
    return parser


def _study_and_store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", metavar="STUDY", help="a module such as experiments.demo, or a file")
    parser.add_argument("--store", required=True, metavar="URI", help="a folder, or a URI such as s3://bucket/path")


def _load_study(name: str) -> Any:
    from scaling.study.declaration import Study

    try:
        if name.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(name).stem, name)
            if spec is None or spec.loader is None:
                raise ImportError(f"{name} is not a Python file")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            sys.path.insert(0, os.getcwd())
            module = importlib.import_module(name)
    except UserError:
        raise
    except Exception as error:  # whatever the user's module raises is theirs to mend
        raise UserError(
            f"study {name}: cannot be loaded ({type(error).__name__}: {error}); give a module such as experiments.demo, or a .py file"
        ) from error
    study = getattr(module, "STUDY", None)
    if not isinstance(study, Study):
        raise UserError(f"study {name}: the module must define STUDY = Study(...)")
    return study


def _say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def _write_json(path: Path | None, value: Any) -> None:
    if path is not None:
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(value, indent=1) + "\n")
        os.replace(partial, path)


def _simulate(options: argparse.Namespace) -> int:
    from scaling.data.simulate import Simulation, pending_files, write_simulation
    from scaling.study.cluster import ray_cluster
    from scaling.study.prepare import milestones

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
    with ray_cluster(options.address) if parallel else contextlib.nullcontext():
        written = write_simulation(options.dest, simulation, milestones("spectra", _say), parallel)
    for split, paths in written.items():
        print(f"{split}: {simulation.rows(split):,} spectra in {', '.join(map(str, paths))}")
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from scaling.study.inspect import inspect

    found = inspect(options.paths)
    print(found.text)
    _write_json(options.json, found.data)
    return 1 if found.problems else 0


def _shard(options: argparse.Namespace) -> int:
    from scaling.data.shards import convert
    from scaling.data.verify import describe_order, verify
    from scaling.study.cluster import ray_cluster
    from scaling.study.prepare import milestones

    with ray_cluster(options.address):
        manifest = convert(
            options.dest,
            train=options.train,
            val=options.val,
            test=options.test,
            rows_per_shard=options.rows_per_shard,
            order=options.order,
            order_seed=options.order_seed,
            on_progress=milestones("shards", _say),
        )
    for split in ("train", "val", "test"):
        print(f"{split}: {manifest.num_rows(split):,} spectra in {len(manifest.shards(split))} shards")
    print(f"order of train: {describe_order(manifest)}")
    for problem in manifest.problems:
        print(f"scaling: warning: {options.dest}: {problem}", file=sys.stderr)
    if options.verify and (problems := verify(options.dest, sources=True)):
        raise UserError(f"{options.dest}: {'; '.join(problems)}")
    return 0


def _limit(options: argparse.Namespace) -> int:
    from scaling.data.information import information_limit

    limit = information_limit(options.path, label=options.label, rows=options.rows, noise_level=options.noise_level)
    print(limit.to_text())
    _write_json(options.json, limit.to_json())
    return 0


def _plan(options: argparse.Namespace) -> int:
    from scaling.study.declaration import stable
    from scaling.study.plan import describe, make_plan

    plan = make_plan(_load_study(options.study), tflops=options.tflops, mfu=options.mfu)
    print(describe(plan))
    _write_json(
        options.json, {"device_hours": plan.device_hours, "trials": plan.num_trials, "cells": stable(plan.cells)}
    )
    return 0


def _run(options: argparse.Namespace) -> int:
    from scaling.data.cache import CACHE_LIMIT, default_cache_root
    from scaling.study.run import run_study

    study = _load_study(options.study)
    cache = options.cache or default_cache_root()
    if options.cache_limit is not None:
        os.environ[CACHE_LIMIT] = str(options.cache_limit)  # the workers read it too
    rows = run_study(study, options.store, address=options.address, cache=cache, retry=options.retry_failed, say=_say)
    bad = [row for row in rows if row.status == "failed"]
    for row in bad:
        print(f"scaling: trial {row.trial} failed: {row.error}", file=sys.stderr)
    return 1 if bad or len(rows) < len(study.cells()) * study.search.trials else 0


def _cache(options: argparse.Namespace) -> int:
    from scaling.data.cache import default_cache_root
    from scaling.data.evict import GB, describe_cache, evict

    root = options.cache or default_cache_root()
    if options.limit is not None and not options.limit >= 0:
        raise UserError(f"--limit is {options.limit:g}: give a number of GB, 0 or more")
    if options.evict or options.limit is not None:
        removed = evict(root, None if options.evict else int(options.limit * GB))
        print(f"removed {len(removed)} splits, {sum(split.num_bytes for split in removed) / GB:.3f} GB")
    print(describe_cache(root))
    return 0


def _status(options: argparse.Namespace) -> int:
    from scaling.study.inspect import study_status
    from scaling.study.store import Store, StudyFolder

    study = _load_study(options.study)
    text, found = study_status(StudyFolder(Store(options.store), study.name), study)
    print(text)
    _write_json(options.json, found)
    return 0


def _collect(options: argparse.Namespace) -> int:
    from scaling.study.run import collect
    from scaling.study.store import Store, StudyFolder

    study = _load_study(options.study)
    folder = StudyFolder(Store(options.store), study.name)
    print(f"{len(collect(study, folder))} rows in {folder.store.locate(folder.table_path)}")
    return 0


def _report(options: argparse.Namespace) -> int:
    from scaling.study.run import write_study_report
    from scaling.study.store import Store, StudyFolder

    study = _load_study(options.study)
    print(write_study_report(study, StudyFolder(Store(options.store), study.name)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
