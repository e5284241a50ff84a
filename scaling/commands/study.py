"""`scaling check`, `plan`, `run`, `status`, `collect` and `report`: commands for a study."""

from __future__ import annotations

import argparse
import functools
import os
import sys
from pathlib import Path

from scaling.commands.common import AddCommand, load_study, say, study_and_store, study_folder, write_json
from scaling.errors import UserError


def add_commands(command: AddCommand) -> None:
    """Add these commands to the parser."""
    sub = command(
        "check",
        _check,
        "Check a device of each kind in the cluster: what it computes, and how fast it trains. "
        "Exit status 0: all as on a CPU; 1: something differs or failed.",
    )
    sub.add_argument("study", nargs="?", metavar="STUDY", help="whose rungs are checked (default: three built-in ones)")
    sub.add_argument("--address", help="Ray cluster to check; one is started on this machine otherwise")
    sub.add_argument("--json", type=Path, metavar="OUT", help="what was found, for `scaling plan --calibration`")

    sub = command(
        "plan", _plan, "Print what a study costs and needs: hours, wall time, memory, disk; trains nothing of it."
    )
    sub.add_argument("study", metavar="STUDY", help="a module such as experiments.demo, or a file")
    sub.add_argument("--store", metavar="URI", help="whose rows and timing runs say how fast trials are")
    sub.add_argument("--calibration", type=Path, metavar="FILE", help="speeds that `scaling check --json FILE` found")
    sub.add_argument("--measure", action="store_true", help="time some rungs on the cluster first; kept in the store")
    sub.add_argument(
        "--address", help="with --measure: Ray cluster to time on; one is started on this machine otherwise"
    )
    sub.add_argument("--nodes", type=int, help="plan for so many equal nodes (default: this machine)")
    sub.add_argument("--cpus-per-node", type=float, metavar="C")
    sub.add_argument("--gpus-per-node", type=float, metavar="G")
    sub.add_argument("--gpu-memory", type=float, metavar="GB", help="of one GPU; else what the timing run found")
    sub.add_argument("--cache-limit", type=float, metavar="GB", help="what the maps of a node may take")
    sub.add_argument("--budget", type=float, metavar="HOURS", help="device-hours that the grid is trimmed to")
    sub.add_argument("--tflops", type=float, help="assumed peak of one device where nothing is measured")
    sub.add_argument("--mfu", type=float, default=0.2, help="fraction of it that training reaches")
    sub.add_argument("--json", type=Path, metavar="OUT")

    sub = command("run", _run, "Run a study, or continue it: data, sweep, rows, report.")
    study_and_store(sub)
    sub.add_argument("--address", help="Ray cluster to use; one is started on this machine otherwise")
    sub.add_argument("--cache", type=Path, metavar="DIR", help="folder for the nodes' memory maps")
    sub.add_argument(
        "--cache-limit", type=float, metavar="GB", help="what the maps of a node may take; also $SCALING_CACHE_LIMIT"
    )
    sub.add_argument("--retry-failed", action="store_true", help="try trials again whose row says failed")

    sub.add_argument("--wandb", metavar="PROJECT", help="also log trials to this project of Weights & Biases")
    sub.add_argument("--mlflow", metavar="URI", help="also log trials to this MLflow server or store")

    sub = command("status", _status, "Say how far a study is.")
    study_and_store(sub)
    sub.add_argument("--json", type=Path, metavar="OUT")

    sub = command("dashboard", _dashboard, "Serve TensorBoard, optuna-dashboard and the report page on this machine.")
    study_and_store(sub)
    sub.add_argument(
        "--port-base", type=int, default=6006, metavar="N", help="the first of three ports (default: 6006)"
    )

    study_and_store(command("collect", _collect, "Gather a study's rows into results.parquet."))
    study_and_store(command("report", _report, "Fit the law and write report/index.html."))


def _check(options: argparse.Namespace) -> int:
    from scaling.check.cluster import check_cluster
    from scaling.check.findings import table, to_json
    from scaling.sweep.cluster import ray_cluster

    study = load_study(options.study) if options.study else None
    with ray_cluster(options.address):
        reports = check_cluster(study, say)
    print("\n".join(map(table, reports)))
    write_json(options, to_json(reports))
    return 1 if any(finding.verdict != "ok" for report in reports for finding in report.findings) else 0


def _plan(options: argparse.Namespace) -> int:
    from scaling.data.batches.cache import cache_limit
    from scaling.study.store import Store
    from scaling.sweep.describe import describe, describe_trimmed, to_json
    from scaling.sweep.plan import make_plan, plan_costs, planned_cluster, require, within

    study = load_study(options.study)
    for name in ("nodes", "cpus_per_node", "gpus_per_node", "gpu_memory", "cache_limit", "budget"):
        value, least = getattr(options, name), 0 if name == "gpus_per_node" else sys.float_info.min
        if value is not None and not least <= value < float("inf"):
            raise UserError(f"--{name.replace('_', '-')} {value:g}: give a number above 0")
    if options.measure and not options.store:
        raise UserError("--measure: name a store with --store, which remembers what was measured")
    store = Store(options.store) if options.store else None
    costs, memory = plan_costs(
        study,
        store,
        tflops=options.tflops,
        mfu=options.mfu,
        measure=options.measure,
        calibration=options.calibration,
        address=options.address,
        say=say,
    )
    cluster = planned_cluster(study, options.nodes, options.cpus_per_node, options.gpus_per_node)
    plan = make_plan(study, costs, cluster)
    memory = options.gpu_memory * 1e9 if options.gpu_memory else memory
    limit = None if options.cache_limit is None else str(options.cache_limit)
    needs = require(plan, store=store, gpu_memory=memory, cache_limit=cache_limit(limit))
    print(describe(plan, needs))
    trimmed = None if options.budget is None else within(plan, options.budget, costs)
    if trimmed is not None:
        print(describe_trimmed(plan, trimmed))
    write_json(options, to_json(plan, needs, trimmed))
    return 1 if needs.problems else 0


def _run(options: argparse.Namespace) -> int:
    from scaling.data.batches.cache import CACHE_LIMIT, default_cache_root
    from scaling.sweep.cluster import require_lasting
    from scaling.sweep.dashboards import check_trackers, logger_callbacks
    from scaling.sweep.run import run_study

    require_lasting(options.store)
    study = load_study(options.study)
    check_trackers(options.wandb, options.mlflow)
    cache = options.cache or default_cache_root()
    if options.cache_limit is not None:
        os.environ[CACHE_LIMIT] = str(options.cache_limit)  # the workers read it too
    rows = run_study(
        study,
        options.store,
        address=options.address,
        cache=cache,
        retry=options.retry_failed,
        say=say,
        callbacks=functools.partial(logger_callbacks, study.name, options.wandb, options.mlflow),
    )
    bad = [row for row in rows if row.status == "failed"]
    for row in bad:
        print(f"scaling: trial {row.trial} failed: {row.error}", file=sys.stderr)
    return 1 if bad else 0


def _status(options: argparse.Namespace) -> int:
    from scaling.sweep.status import study_status

    study, folder = study_folder(options)
    text, found = study_status(folder, study)
    print(text)
    write_json(options, found)
    return 0


def _dashboard(options: argparse.Namespace) -> int:
    from scaling.sweep.dashboards import serve

    study, folder = study_folder(options)
    serve(folder, study, options.port_base, functools.partial(print, flush=True))
    return 0


def _collect(options: argparse.Namespace) -> int:
    from scaling.sweep.run import collect

    study, folder = study_folder(options)
    print(f"{len(collect(study, folder))} rows in {folder.store.locate(folder.table_path)}")
    return 0


def _report(options: argparse.Namespace) -> int:
    from scaling.sweep.run import collect, write_study_report

    study, folder = study_folder(options)
    print(write_study_report(study, folder, collect(study, folder), say))
    return 0
