"""Local files: atomic writes that never replace an input, and common handling of full disks, sizes and NaN.

Needs neither Ray nor torch, so that `analysis` can use it too. `scaling.folder` does the same for any URI.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scaling.errors import UserError

Location = str | Path
"""A folder: a local path, or a URI such as s3://bucket/path."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
"""Errors that a retry cannot fix."""
JSON_STARTS, PARQUET_STARTS = re.compile(rb"\s*[{\[]"), re.compile(rb"PAR1")
MODEL_STARTS = re.compile(rb".{8}\{", re.DOTALL)
"""First bytes of each kind of output; the last is safetensors, whose JSON header follows its length."""
START_BYTES = 16
PASSWORD = re.compile(
    r"s3://[^/?@:]*:[^?]*@|[\w+.-]+://([^/?@]*:[^/?@]*@|[^?]*\?(.*&)?(sig|[^=&]*(secret|passw|token|signature|_key))=)",
    re.IGNORECASE,
)
"""A secret in an address, either before its host or as a trailing option; S3 keys may contain slashes."""
WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class FullError(UserError):
    """There is no space left. Nothing is lost; the same command continues once there is space."""


def location(text: str) -> Location:
    """Parse a location from the command line: a URI unchanged, otherwise a local path."""
    return text if "://" in text else Path(text)


def require_no_password(place: str, what: str) -> None:
    """Reject an address that contains a secret: addresses are shown in logs, on dashboards and in reports.

    Raises:
        UserError: It has the form scheme://name:password@…, or an option such as client_secret. The message shows neither.
    """
    if PASSWORD.match(place):
        raise UserError(
            f"{what} {place.partition('://')[0]}://…: an address is shown in logs, on dashboards and in reports, and this one "
            "holds a password or a key; give it without, and the credentials to the machines that open it (a role, or variables "
            "of their environment such as AWS_SECRET_ACCESS_KEY, AZURE_CLIENT_SECRET or MLFLOW_TRACKING_PASSWORD)"
        )


def is_full(error: BaseException) -> bool:
    """Whether a write failed for lack of space; HDF5 gives the system's reason only in its message."""
    said = [os.strerror(code) for code in NO_ROOM]
    return getattr(error, "errno", None) in NO_ROOM or any(reason in str(error) for reason in said)


def size_text(num_bytes: float) -> str:
    """Format a size in bytes, such as "1.23 GB"."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(num_bytes) >= factor:
            return f"{num_bytes / factor:.3g} {unit}"
    return f"{num_bytes:.0f} bytes"


def human(number: float) -> str:
    """Format a count for people: 512, 16k, 1.5M."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{suffix}"
    return f"{number:.3g}"


def disk_is_full(path: Location, needed: int) -> FullError:
    """The error to raise where ``path`` has no room for ``needed`` more bytes."""
    free = shutil.disk_usage(_existing(Path(path))).free
    return FullError(
        f"{path}: the disk is full: at least {size_text(needed)} needed, {size_text(free)} free: "
        "make room and run the same command again"
    )


def require_space(path: Location, needed: int) -> None:
    """Fail before writing what does not fit; URIs are not checked.

    Raises:
        FullError: Fewer than ``needed`` bytes are free where ``path`` is or will be.
    """
    if "://" not in str(path) and shutil.disk_usage(_existing(Path(path))).free < needed:
        raise disk_is_full(path, needed)


def _existing(path: Path) -> Path:
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def plain(value: Any) -> Any:
    """Convert a value to JSON types: NaN and infinity become null, NumPy scalars become Python scalars."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def json_bytes(value: Any) -> bytes:
    """A value as indented JSON."""
    return (json.dumps(plain(value), indent=1, allow_nan=False) + "\n").encode()


@contextmanager
def published(path: Path, replace: bool = True) -> Iterator[Path]:
    """Write a file atomically: yields a temporary path, renamed to `path` once it is written and synced, or removed.

    Where the file system supports it (O_TMPFILE), the temporary file has no name, so that even a killed process leaves none behind.

    Raises:
        FileExistsError: `replace` is False and the file exists by then.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        nameless = os.open(path.parent, os.O_TMPFILE | os.O_RDWR, 0o666)
    except (AttributeError, OSError):  # not Linux, or a network file system
        nameless = None
    try:
        yield temporary if nameless is None else Path(f"/proc/self/fd/{nameless}")
        if nameless is None:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        else:
            os.fsync(nameless)
            # An absolute path ignores the directory descriptor, but with one Python follows the link (linkat).
            os.link(f"/proc/self/fd/{nameless}", temporary, src_dir_fd=nameless, follow_symlinks=True)
        (os.replace if replace else _link)(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
        if nameless is not None:
            os.close(nameless)


def _link(file: Path, path: Path) -> None:
    """Rename a file to a name that must not exist, atomically where the file system has hard links."""
    try:
        os.link(file, path)
    except FileExistsError:
        raise
    except OSError:
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        os.replace(file, path)


@contextmanager
def output(
    path: Path, inputs: Iterable[Location] = (), starts: re.Pattern[bytes] | None = JSON_STARTS
) -> Iterator[Path]:
    """`published` for the user-visible output of a command: never destroys anything but an earlier output.

    Args:
        path: The output file.
        inputs: What the command reads: files, or folders, inside which nothing is written.
        starts: The first bytes of files of this kind; an existing file that begins differently is not the command's own.
            None where another file beside it already identifies its owner.

    Raises:
        UserError: The path is an input, is not a regular file, holds something else, or cannot be written.
    """
    check_output(path, inputs, starts)
    try:
        with published(path) as temporary:
            yield temporary
    except OSError as error:
        if is_full(error):
            raise disk_is_full(path, 0) from error
        if isinstance(error, FINAL):
            raise _unwritable(path, error) from error
        raise


def check_output(path: Path, inputs: Iterable[Location] = (), starts: re.Pattern[bytes] | None = JSON_STARTS) -> None:
    """Reject an output path before anything is computed. See `output`."""
    try:
        if not path.parent.is_dir():
            raise UserError(f"{path}: there is no folder {path.parent}: make it, or name another output")
        if problem := _why_not(path, inputs, starts):
            raise UserError(f"{path}: {problem}: name another output")
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be written ({error.strerror}): name another output")


def _why_not(path: Path, inputs: Iterable[Location], starts: re.Pattern[bytes] | None) -> str:
    there = path.lstat() if os.path.lexists(path) else None
    if there is not None and not stat.S_ISREG(there.st_mode):
        return "is there and is not a regular file"
    parents = [parent.stat() for parent in path.absolute().parents]
    for other in inputs:
        with contextlib.suppress(OSError):
            found = os.stat(str(other).removeprefix("file://"))
            if there is not None and os.path.samestat(found, there):
                return "is an input of this command"
            if any(os.path.samestat(found, parent) for parent in parents):
                return f"lies in {other}, an input of this command"
    if there is not None and starts is not None:
        with open(path, "rb") as file:
            if there.st_size and not starts.match(file.read(START_BYTES)):
                return "holds something that this command did not write"
    return "" if os.access(path.parent, os.W_OK) else f"the folder {path.parent} cannot be written"


def write_json_output(path: Path | None, value: Any, inputs: Iterable[Location] = ()) -> None:
    """Write the ``--json`` output of a command, if a path is given. See `output` for the checks."""
    if path is not None:
        with output(path, inputs) as temporary:
            temporary.write_bytes(json_bytes(value))


def private_folder(path: Path) -> Path:
    """Create a folder private to this user, mode 0700, or check the existing one.

    Raises:
        UserError: It is a link, belongs to another user, or others may write to it or replace it.
    """
    path = path.absolute()
    try:
        for place in (path.parent, path):  # mkdir's mode applies to the last folder only
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        parent, there = path.parent.stat(), path.lstat()
    except OSError as error:
        raise UserError(f"{path}: cannot be made ({error.strerror}): name another folder") from error
    if not stat.S_ISDIR(there.st_mode) or there.st_uid != os.getuid() or there.st_mode & WRITABLE_BY_OTHERS:
        raise UserError(
            f"{path}: must be a real folder of yours that nobody else can write to: run `chmod go-w` on it, or name another"
        )
    shared = parent.st_mode & WRITABLE_BY_OTHERS and not parent.st_mode & stat.S_ISVTX
    if shared or parent.st_uid not in (0, os.getuid()):
        raise UserError(
            f"{path}: another user can replace it: run `chmod go-w` on {path.parent} if it is yours, or name another folder"
        )
    return path


def user_cache(name: str) -> Path:
    """A private folder for regenerable files: $XDG_CACHE_HOME or ~/.cache, then spectral-scaling/``name``."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    base = given if given.is_absolute() else Path.home() / ".cache"
    return private_folder(private_folder(base / "spectral-scaling") / name)
