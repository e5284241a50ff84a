"""Version of the running code: the commit recorded in rows, and a source hash that every node is compared with."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
from pathlib import Path

COMMIT = "SCALING_COMMIT"
PACKAGE = Path(__file__).resolve().parents[1]
"""The folder of the imported package `scaling`."""


@functools.cache
def code_hash() -> str:
    """A hash of all Python files of the package `scaling`, independent of its location."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py"), key=lambda path: path.relative_to(PACKAGE).as_posix()):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(PACKAGE).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:12]


def code_commit() -> str:
    """The commit of the source tree, with "+changes" if it differs.

    Outside a git checkout it is the environment variable SCALING_COMMIT, else "source-" and the hash of the source.
    """

    def git(*words: str) -> str:
        command = ["git", "-C", str(PACKAGE), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if git("ls-files", "--", "__init__.py"):  # not just an untracked folder of another checkout
            return git("rev-parse", "--short=12", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        pass
    return os.environ.get(COMMIT) or f"source-{code_hash()}"
