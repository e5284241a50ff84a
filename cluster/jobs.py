"""Jobs on a Ray cluster through its HTTP API: submit, follow and stop jobs, and fetch a study's results."""

from __future__ import annotations

import asyncio
import base64
import io
import logging
import os
import re
import shlex
import shutil
import tarfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.environment import runtime_env
from scaling.errors import UserError
from scaling.files import require_no_password

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

BEGIN, END = "-----BEGIN STUDY-----", "-----END STUDY-----"
POLL_SECONDS = 1.0
REFUSED = re.compile(r"(Request failed with status code )?40[13]\b")
"""Where Ray's client and the libraries below it put the status of a refused token; a job's id holds digits too."""


@dataclass(slots=True)
class Cluster:
    """The job API of a cluster's head node.

    Attributes:
        address: http://HOST:8265.
        say: Called with each line of output.
    """

    address: str
    say: Callable[[str], None]
    _client: JobSubmissionClient | None = field(default=None, init=False)

    @property
    def client(self) -> JobSubmissionClient:
        """The connection, with the user's Ray token ($RAY_AUTH_TOKEN, or ~/.ray/auth_token).

        Raises:
            UserError: There is no response, or the token is wrong.
        """
        if self._client is None:
            require_no_password(self.address, "--address")
            if not self.address.startswith(("http://", "https://")):
                raise UserError(f"--address {self.address}: give the dashboard's URL, such as http://HEAD:8265")
            os.environ.setdefault("RAY_AUTH_MODE", "token")
            from ray.job_submission import JobSubmissionClient

            for name in ("ray", *(f"ray.dashboard.modules.{each}" for each in ("dashboard_sdk", "job.sdk"))):
                logging.getLogger(name).setLevel(logging.ERROR)  # they log each file that is not packed
            self._client = self._ask(lambda: JobSubmissionClient(self.address))
        return self._client

    def submit(self, study: str, command: Sequence[str], store: str, *, env: Sequence[str], pip: bool) -> str:
        """Submit a command of this project as a job; returns its id."""
        environment = runtime_env(env, pip=pip)
        entrypoint = shlex.join(["python", "-m", *command])
        name = f"{study.rpartition('.')[2]}-{time.strftime('%Y%m%d-%H%M%S')}"
        about = {"study": study, "store": store, "commit": environment["env_vars"]["SCALING_COMMIT"]}
        job = self._ask(
            lambda: self.client.submit_job(
                entrypoint=entrypoint, runtime_env=environment, submission_id=name, metadata=about
            )
        )
        self.say(f"job {job}: {entrypoint}")
        return job

    def follow(self, job: str) -> int:
        """Print a job's log until it ends; returns the exit status: 0 succeeded, 1 failed or stopped."""

        async def print_all() -> None:
            async for lines in self.client.tail_job_logs(job):
                print(lines, end="", flush=True)

        try:
            self._ask(lambda: asyncio.run(print_all()))
        except UserError as error:
            self.say(f"the connection is lost ({error}); the job continues: see `status`")
        details = self.details(job)
        while not details.status.is_terminal():
            time.sleep(POLL_SECONDS)
            details = self.details(job)
        succeeded = details.status.value == "SUCCEEDED"
        self.say(f"job {job}: {details.status.value.lower()}" + ("" if succeeded else f", {_reason(details)}"))
        return 0 if succeeded else 1

    def details(self, job: str) -> JobDetails:
        """The cluster's information on a job.

        Raises:
            UserError: There is no such job.
        """
        return self._ask(lambda: self.client.get_job_info(job))

    def jobs(self) -> list[JobDetails]:
        """All submitted jobs, the newest first."""
        jobs = [job for job in self._ask(lambda: self.client.list_jobs()) if job.submission_id]
        return sorted(jobs, key=lambda job: job.start_time or 0, reverse=True)

    def logs(self, job: str) -> str:
        """A job's log so far."""
        return self._ask(lambda: self.client.get_job_logs(job))

    def stop(self, job: str) -> None:
        """Stop a job; its trials resume from their checkpoints when it is submitted again."""
        self._ask(lambda: self.client.stop_job(job))

    def fetch(self, job: str, out: Path) -> list[str]:
        """Copy a study's report and table from the cluster, whose store may be inaccessible here; returns the paths.

        A job on the cluster prints them as text into its log, from which they are read.

        Raises:
            UserError: The job was not submitted by `submit`, the study has no report yet, or `out` exists and is not empty.
        """
        about = self.details(job).metadata or {}
        if not {"study", "store"} <= about.keys():
            raise UserError(
                f"job {job}: was not submitted by `python -m cluster submit`; it does not say where its store is"
            )
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out}: is {'not empty' if out.is_dir() else 'no folder'}; name a new folder")
        environment = dict(self.details(job).runtime_env or {})
        command = shlex.join(["python", "-m", "cluster.pack", about["study"], "--store", about["store"]])
        packing = self._ask(lambda: self.client.submit_job(entrypoint=command, runtime_env=environment))
        while not self.details(packing).status.is_terminal():
            time.sleep(POLL_SECONDS)
        log = self.logs(packing)
        _, begun, rest = log.partition(BEGIN)
        content, ended, _ = rest.partition(END)
        if not begun or not ended:
            raise UserError(f"{about['study']}: nothing to fetch ({(log.strip().splitlines() or ['no log'])[-1]})")
        self._ask(lambda: self.client.delete_job(packing))
        half = out.with_name(f".{out.name}.half")
        shutil.rmtree(half, ignore_errors=True)
        with tarfile.open(fileobj=io.BytesIO(base64.b64decode(content))) as archive:
            archive.extractall(half, filter="data")
            names = sorted(archive.getnames())
        half.replace(out)
        return names

    def _ask(self, question: Callable[[], Any]) -> Any:
        """Send a request to the cluster, and convert Ray's various errors into one line."""
        try:
            return question()
        except (UserError, KeyboardInterrupt):
            raise
        except Exception as error:  # from several libraries, through Ray's client
            from ray.exceptions import AuthenticationError

            text = " ".join(str(error).split())
            if isinstance(error, AuthenticationError) or REFUSED.match(text):
                text = "the token is missing or wrong: set RAY_AUTH_TOKEN, or put the cluster's into ~/.ray/auth_token"
            raise UserError(f"{self.address}: {text[:300] or type(error).__name__}") from error


def _reason(details: JobDetails) -> str:
    """Ray's reason for a failed job: the last line that names an error, without the log that follows."""
    lines = [line.strip() for line in str(details.message).splitlines() if line.strip()] or ["no reason given"]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors[-1] if errors else lines[0]).partition(", last available logs")[0]
