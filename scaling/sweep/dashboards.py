"""Pages for watching a study: TensorBoard, optuna-dashboard and report on loopback; optional external trackers."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaling.errors import UserError
from scaling.files import require_no_password
from scaling.study.declaration import Study
from scaling.study.lease import runs_here
from scaling.study.store import StudyFolder
from scaling.sweep.live import report_server

HOST = "127.0.0.1"
START_SECONDS = 120.0
END_SECONDS = 10.0
PORTS = 3


@dataclass(frozen=True, slots=True)
class Page:
    """One dashboard: its address, and the command that serves it. `problem` says why it cannot be served."""

    name: str
    port: int
    path: str = "/"
    command: tuple[str, ...] = ()
    problem: str = ""

    @property
    def address(self) -> str:
        """Its address on this machine."""
        return f"http://{HOST}:{self.port}{self.path}"


def serve(folder: StudyFolder, study: Study, port_base: int, say: Callable[[str], None]) -> None:
    """Serve a study's dashboards until Ctrl-C or SIGTERM, which stop them all.

    Raises:
        UserError: The study is not in the store, or a port is in use.
    """
    if folder.read_declaration() is None:
        raise UserError(f"{folder.store.locate(folder.name)}: no such study there; run it first, or correct --store")
    _check_ports(port_base)
    pages = [_tensorboard(folder, port_base), _optuna(folder, study, port_base + 1)]
    report = Page("report", port_base + 2)
    with contextlib.ExitStack() as stack:
        stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, signal.default_int_handler))
        stack.enter_context(report_server(folder, study, HOST, report.port))
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spectral-scaling-dashboards-")))
        started = {page: stack.enter_context(_process(page, logs)) for page in pages if page.command}
        stack.enter_context(contextlib.suppress(KeyboardInterrupt))
        for page in [*pages, report]:
            problem = page.problem or _await(page, started.get(page), logs)
            say(f"{page.name + ':':<18} {problem or page.address}")
        say("Ctrl-C ends them")
        while True:
            time.sleep(1.0)
            for page, process in list(started.items()):
                if process.poll() is not None:
                    say(f"{page.name} has ended: {_last_line(page, logs)}")
                    del started[page]
    say("dashboards ended")


def _check_ports(base: int) -> None:
    for port in range(base, base + PORTS):
        try:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise UserError(f"--port-base {base}: port {port} cannot be used ({error}); give another") from error


def _tensorboard(folder: StudyFolder, port: int) -> Page:
    trials = folder.store.locate(f"{folder.name}/trials")
    if folder.store.local is None:
        try:
            from tensorboard.compat.tensorflow_stub.io import gfile

            gfile.exists(trials)  # fails if TensorBoard has no client for this kind of store
        except Exception as error:  # clients raise anything
            reason = " ".join(str(error).split())
            return Page(
                "TensorBoard", port, problem=f"cannot read {trials} ({reason}); copy its trials to a local folder"
            )
    flags = (
        "--logdir",
        trials,
        "--host",
        HOST,
        "--port",
        str(port),
        "--reload_interval",
        "5",
        "--window_title",
        folder.name,
    )
    return Page("TensorBoard", port, "/#hparams", (sys.executable, "-m", "tensorboard.main", *flags))


def _optuna(folder: StudyFolder, study: Study, port: int) -> Page:
    name = "optuna-dashboard"
    program = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if program is None:
        return Page(name, port, problem="not installed; pip install 'spectral-scaling[dashboards]'")
    journal = folder.journal
    from scaling.sweep.journal import Journal, sweep_page

    if not journal.exists() or not (folder.store.local or runs_here(folder.store, folder.running_path)):
        Journal(study, journal, folder.rows())  # the sweep's own journal is on another machine, or missing
    return Page(
        name,
        port,
        f"/dashboard/{sweep_page(journal, study.name)}",
        (program, str(journal), "--host", HOST, "--port", str(port)),
    )


@contextlib.contextmanager
def _process(page: Page, logs: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A dashboard's process, in its own session, so that it and all its children can be stopped here."""
    with (logs / page.name).open("wb") as log:
        process = subprocess.Popen(page.command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        yield process
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS)
                break


def _await(page: Page, process: subprocess.Popen[bytes] | None, logs: Path) -> str:
    """Wait until a page answers; returns the problem if it does not."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process is not None and process.poll() is not None:
            return f"did not start: {_last_line(page, logs)}"
        connection = http.client.HTTPConnection(HOST, page.port, timeout=5.0)
        try:
            connection.request("GET", page.path.partition("#")[0])
            if connection.getresponse().status < 500:
                return ""
        except (OSError, http.client.HTTPException):
            time.sleep(0.2)
        finally:
            connection.close()
    return f"does not answer after {START_SECONDS:.0f} s"


def _last_line(page: Page, logs: Path) -> str:
    lines = (logs / page.name).read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def check_trackers(wandb: str | None, mlflow: str | None) -> None:
    """Check up front that the trackers' packages are installed and that MLflow can open its URI.

    Raises:
        UserError: Says how to install the package, or what MLflow reports; or the URI has a password, which Tune would store.
    """
    require_no_password(mlflow or "", "--mlflow")
    for name, value in (("wandb", wandb), ("mlflow", mlflow)):
        if value is not None and importlib.util.find_spec(name) is None:
            raise UserError(f"--{name} {value}: {name} is not installed; pip install 'spectral-scaling[tracking]'")
    if mlflow is not None:
        from mlflow import MlflowClient

        try:
            MlflowClient(tracking_uri=mlflow).search_experiments(max_results=1)
        except Exception as error:  # from MLflow, or its server and database clients
            raise UserError(
                f"--mlflow {mlflow}: cannot be opened ({error}); give a server's or a database's URI"
            ) from error


def logger_callbacks(study: str, wandb: str | None, mlflow: str | None) -> list[Any]:
    """Tune's callbacks that log each trial to Weights & Biases (a project) and to MLflow (a tracking URI).

    They open files or connections in the driver. Ray is imported here, so call this after its environment is set.
    """
    callbacks: list[Any] = []
    if wandb is not None:
        from ray.air.integrations.wandb import WandbLoggerCallback

        mode = os.environ.get("WANDB_MODE")
        callbacks.append(_plain(WandbLoggerCallback)(project=wandb, group=study, **({"mode": mode} if mode else {})))
    if mlflow is not None:
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        callbacks.append(_plain(MLflowLoggerCallback)(tracking_uri=mlflow, experiment_name=study))
    return callbacks


def _plain(logger: type[Any]) -> type[Any]:
    """The same callback restricted to plain values, since a trial's configuration also contains an object of ours."""

    def plain(values: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in values.items() if isinstance(value, bool | int | float | str)}

    class Plain(logger):
        def log_trial_start(self, trial: Any) -> None:
            config, trial.config = trial.config, plain(trial.config)
            try:
                super().log_trial_start(trial)
            finally:
                trial.config = config

        def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
            numbers = {name: value for name, value in plain(result).items() if not isinstance(value, str)}
            super().log_trial_result(iteration, trial, numbers)

    return Plain
