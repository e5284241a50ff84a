"""The runtime environment of a job: the working tree, settings, and optionally the dependencies."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scaling.errors import UserError
from scaling.files import require_no_password
from scaling.sweep.code import COMMIT, code_commit

ROOT = Path(__file__).resolve().parents[1]
"""The working tree, which contains `scaling`, `experiments` and this package."""
EXCLUDED = [
    "/.git",
    "/tests",
    "/benchmarks",
    "/.venv",
    "/results",
    "**/__pycache__",
    "*.h5",
    "*.safetensors",
    "*.parquet",
]
"""Files that no job needs, as gitignore patterns; Ray also excludes those in the tree's own .gitignore."""
SECRET = re.compile(r"SECRET|TOKEN|PASSW|PASSPHRASE|CREDENTIAL|APIKEY|(^|_)KEY(_|$)|CONNECTION_STRING")
WORKING_DIR = "${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}"
"""Ray's name for the working tree on a node."""


def runtime_env(settings: Sequence[str], *, pip: bool) -> dict[str, Any]:
    """The runtime environment of a job, in the form of `ray.job_submission`.

    Args:
        settings: Environment variables of the job, NAME=VALUE, or NAME for this shell's value.
        pip: Whether to install the project's dependencies on the nodes, by constraints.txt; Ray must already be installed.

    Raises:
        UserError: A variable is not set, or contains a secret: everybody who sees the dashboard sees the variables.
    """
    found: dict[str, Any] = {
        "working_dir": str(ROOT),
        "excludes": EXCLUDED,
        "env_vars": {COMMIT: code_commit(), **dict(map(_setting, settings))},
    }
    if pip:
        pins = f"--constraint {WORKING_DIR}/constraints.txt"  # a line of requirements.txt; Ray expands the path
        found["pip"] = {"packages": [pins, *dependencies()], "pip_install_options": ["--no-cache-dir"]}
    return found


def dependencies() -> list[str]:
    """The project's dependencies except Ray, which a running cluster has and must keep."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [each for each in project["dependencies"] if not re.match(r"ray\b", each)]


def _setting(text: str) -> tuple[str, str]:
    name, given, value = text.partition("=")
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise UserError(f"--env {name}: is no name; give NAME=VALUE, or NAME for its value in this shell")
    if SECRET.search(name.upper()):
        raise UserError(
            f"--env {name}: looks like a secret, and everybody who sees the cluster's dashboard sees a job's environment: "
            "give it to the nodes (an instance role, a mounted secret, ~/.aws/credentials)"
        )
    if not given and name not in os.environ:
        raise UserError(f"--env {name}: is not set in this shell; give {name}=VALUE")
    value = value if given else os.environ[name]
    require_no_password(value, f"--env {name} =")
    return name, value
