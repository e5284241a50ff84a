"""Connection to Ray: to an existing cluster, or to one started on this machine."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scaling.errors import UserError
from scaling.files import private_folder
from scaling.sweep.code import PACKAGE

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",
    # By default Tune lets a custom searcher queue one trial; ours hands out only trials that have room.
    "TUNE_MAX_PENDING_TRIALS_PG": "64",
    # Ctrl-C ends the run at once: trials resume from the store, whereas Tune would need a second Ctrl-C.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Lets glibc keep freed memory, up to 512 MiB per process, for the next block of spectra or the next step's activations:
    # fresh memory from the kernel costs a fifth of a conversion, and a quarter of the steps of width 32 at batch 256 on
    # a CPU.
    "MALLOC_MMAP_THRESHOLD_": str(2**29),
    "MALLOC_TRIM_THRESHOLD_": str(2**29),
    # Lets Arrow's allocator keep memory for 10 s: otherwise a stream's decoder returns it and interrupts the trainer constantly.
    "MIMALLOC_PURGE_DELAY": "10000",
}

PASSED_ON = ("SCALING_CACHE", "SCALING_CACHE_LIMIT", "SCALING_PATIENCE")
"""Settings of this process that its workers inherit."""
JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Environment variable in which `ray job submit` passes the job's settings to the driver."""


def joins(address: str | None) -> str | None:
    """The existing cluster to join: the given one, else the one that this process is a job of; None if neither."""
    return address or os.environ.get("RAY_ADDRESS") or ("auto" if os.environ.get("RAY_JOB_ID") else None)


def require_lasting(store: str) -> None:
    """Reject a store in a Ray job's own working folder, which is deleted with the job, including the results.

    Raises:
        UserError: The store is in that folder.
    """
    if "working_dir" in _of_job() and "://" not in store and not Path(store).is_absolute():
        raise UserError(
            f"--store {store}: is in this job's working folder, which Ray deletes: give the absolute path of a folder that all "
            "nodes see, or a URI such as s3://bucket/path"
        )


def _of_job() -> dict[str, Any]:
    """The runtime environment of the Ray job that this process drives; empty if there is no job, or it has none."""
    found: dict[str, Any] = json.loads(os.environ.get(JOB_CONFIG) or "{}").get("runtime_env") or {}
    return found


def private_token(path: Path) -> None:
    """Create Ray's token, readable only by its owner, or restrict an existing one: whoever reads it can run code here.

    Ray itself (2.60) creates it with the permissions given by the umask.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    except FileExistsError:
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)


@contextlib.contextmanager
def ray_cluster(address: str | None = None) -> Iterator[None]:
    """Connect to Ray at `address`; without one, to the cluster this process is a job of, or to a new local one.

    A process that is already connected keeps its connection.

    Raises:
        UserError: Nothing answers at the address, it is for Ray Client, or another user could replace Ray's folder.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    there = joins(address)
    if there is None:
        # Ray Train's watcher for nodes that a cloud takes back: one more process per trial, of no use on the only node.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        # Ray listens on all interfaces of the host, so a token is always required (Ray keeps it in the user's home folder).
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        if os.environ["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN" not in os.environ:
            private_token(Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"))
        # Ray makes its folder, with the sockets through which workers receive work, accessible to every user of the machine.
        if "RAY_TMPDIR" not in os.environ:
            os.environ["RAY_TMPDIR"] = str(private_folder(Path(tempfile.gettempdir()) / f"ray-{os.getuid()}"))
    if address or "RAY_ADDRESS" in os.environ:
        _require_listener(address or os.environ["RAY_ADDRESS"], "--address" if address else "$RAY_ADDRESS")
    import ray

    if ray.is_initialized():
        yield
        return
    try:
        ray.init(
            address=there or "local",
            runtime_env=_runtime_env(joins=there is not None),
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except ConnectionError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"--address {address}: no Ray cluster answers ({reason}); start one with `ray start --head`"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _runtime_env(*, joins: bool) -> dict[str, Any]:
    """Runtime environment of the workers: settings and, on an existing cluster, this version of the code.

    Ray refuses to merge settings given by both the driver and its job; the job's take precedence.
    """
    job = _of_job()
    settings = set(ENVIRONMENT).union(PASSED_ON).difference(job.get("env_vars") or {}).intersection(os.environ)
    wanted = {"env_vars": {name: os.environ[name] for name in settings}, "worker_process_setup_hook": _name_cluster}
    if joins and not ("working_dir" in job and PACKAGE.is_relative_to(Path.cwd())):
        wanted["py_modules"] = _own_code()
    return {name: value for name, value in wanted.items() if name == "env_vars" or name not in job}


def _own_code() -> list[str]:
    """The package `scaling`, and the package of the study's module if it was imported from the working folder."""
    code = {PACKAGE}
    for name, module in list(sys.modules.items()):
        top = sys.modules.get(name.partition(".")[0])
        if "STUDY" in getattr(module, "__dict__", ()) and name != "__main__" and top is not None:
            code.add(Path(next(iter(getattr(top, "__path__", [])), str(top.__file__))).resolve())
    return sorted(str(path) for path in code if path == PACKAGE or path.is_relative_to(Path.cwd()))


def _name_cluster() -> None:
    """Set the cluster address in the environment of a worker process.

    To free the devices of a killed controller, Ray Train (2.60) looks up the cluster of its host again. If the host has
    several clusters it gives up without this, and the trial's next attempt would wait for its devices forever.
    """
    import ray

    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address


def _require_listener(address: str, name: str) -> None:
    """Reject an address where nothing listens; Ray itself would retry for minutes."""
    if address in ("auto", "local"):
        return
    if address.startswith("ray://"):
        raise UserError(
            f"{name} {address}: Ray Client is not supported; give HOST:6379 of the cluster's head, or submit the study "
            "there with `ray job submit`"
        )
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit():
        raise UserError(f"{name} {address}: give HOST:PORT, as `ray start --head` prints it (the port is 6379)")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"{name} {address}: nothing answers there ({error}); start Ray with `ray start --head`"
        ) from error
