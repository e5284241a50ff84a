"""`python -m cluster submit | status | logs | stop | fetch`; exit: 0 done, 1 job failed, 2 user error (one line)."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from cluster.jobs import Cluster
from scaling.commands.common import say
from scaling.errors import UserError
from scaling.files import require_no_password


def main(arguments: list[str] | None = None) -> int:
    """Run one command."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options, Cluster(options.address, say)))
    except UserError as error:
        print(f"cluster: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("cluster: detached; the job continues", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cluster", description="Studies on a Ray cluster, by its job API.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: object, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--address", required=True, metavar="URL", help="the head's dashboard, http://HEAD:8265")
        sub.set_defaults(command=function)
        return sub

    sub = command("submit", _submit, "Run a study on the cluster, or continue it, and follow its log.")
    sub.add_argument("study", metavar="STUDY", help="a module such as experiments.demo")
    sub.add_argument("--store", required=True, metavar="URI", help="where all nodes see it: a shared folder, or s3://…")
    sub.add_argument("--cache", metavar="DIR", help="folder on each node's local disk for memory maps")
    sub.add_argument("--env", action="append", default=[], metavar="NAME[=VALUE]", help="for the study; no secrets")
    sub.add_argument("--pip", action="store_true", help="install the dependencies on the nodes (minutes, once a node)")
    sub.add_argument("--retry-failed", action="store_true", help="try trials again whose row says failed")
    sub.add_argument("--detach", action="store_true", help="do not follow the log")
    command("status", _status, "List the cluster's jobs, the newest first.")
    sub = command("logs", _logs, "Print a job's log.")
    sub.add_argument("job", metavar="JOB")
    sub.add_argument("--follow", action="store_true", help="until the job ends")
    command("stop", _stop, "Stop a job; submitted again, the study continues.").add_argument("job", metavar="JOB")
    sub = command("fetch", _fetch, "Copy a study's report and table here, through the job API alone.")
    sub.add_argument("job", metavar="JOB")
    sub.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    return parser


def _submit(options: argparse.Namespace, cluster: Cluster) -> int:
    store = options.store
    require_no_password(store, "--store")
    if "://" not in store and not Path(store).is_absolute():
        store = str(Path(store).absolute())
        say(f"--store {options.store} is {store}, on the cluster's nodes too: it must be a folder that all of them see")
    if options.study.endswith(".py"):
        raise UserError(
            f"{options.study}: give a module of the working tree, such as experiments.mine, which the job takes along"
        )
    command = ["scaling", "run", options.study, "--store", store]
    command += ["--cache", options.cache] if options.cache else []
    command += ["--retry-failed"] if options.retry_failed else []
    job = cluster.submit(options.study, command, store, env=options.env, pip=options.pip)
    here = f"python -m cluster {{}} --address {options.address} {job}"
    say(f"watch: {here.format('logs')} --follow | stop: {here.format('stop')} | fetch: {here.format('fetch')} OUT")
    return 0 if options.detach else cluster.follow(job)


def _status(options: argparse.Namespace, cluster: Cluster) -> int:
    for job in cluster.jobs():
        started = time.strftime("%Y-%m-%d %H:%M", time.localtime((job.start_time or 0) / 1000))
        about = job.metadata or {}
        print(
            f"{job.submission_id}  {started}  {job.status.value.lower():10} {about.get('study', '')} {about.get('store', '')}"
        )
    return 0


def _logs(options: argparse.Namespace, cluster: Cluster) -> int:
    if options.follow:
        return cluster.follow(options.job)
    print(cluster.logs(options.job), end="")
    return 0


def _stop(options: argparse.Namespace, cluster: Cluster) -> int:
    cluster.stop(options.job)
    say(f"job {options.job}: is stopping; submitted again, the study continues")
    return 0


def _fetch(options: argparse.Namespace, cluster: Cluster) -> int:
    names = cluster.fetch(options.job, options.out)
    say(f"{len(names)} files in {options.out}: {options.out / 'report' / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
