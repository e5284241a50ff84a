"""A folder, local or at any URI supported by pyarrow (s3://, gs://, …); files are read and written whole."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import posixpath
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

import pyarrow as pa
from pyarrow import fs

from scaling.errors import UserError
from scaling.files import FullError, Location, is_full, published, require_no_password
from scaling.retry import REFUSED, retrying

Result = TypeVar("Result")
_CLIENTS: list[fs.FileSystem] = []


@functools.lru_cache(maxsize=1024)
def _file_system(uri: str) -> tuple[fs.FileSystem, str]:
    """The process-wide client for the server and settings of a URI, and the path on it."""
    once = "allow_delayed_open=true"  # a small object takes one request, not three
    if uri.startswith("s3://") and "allow_delayed_open=" not in uri:
        uri += f"{'&' if '?' in uri else '?'}{once}"
    new, path = fs.FileSystem.from_uri(uri)
    client = next((client for client in _CLIENTS if client == new), new)
    if client is new:
        _CLIENTS.append(new)
    return client, path


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder, local or at a URI. Its files are named by their relative path, with slashes."""

    uri: str

    @classmethod
    def at(cls, location: Location | Folder) -> Self:
        """The folder at a location, as an absolute path or URI."""
        return location if isinstance(location, cls) else cls(str(location))

    def __post_init__(self) -> None:
        """Make a local path absolute, so that workers resolve it identically; reject a URI with a password."""
        require_no_password(self.uri, "folder")
        if self.uri.startswith("file://"):
            object.__setattr__(self, "uri", self.uri.removeprefix("file://"))
        if "://" not in self.uri:
            object.__setattr__(self, "uri", os.path.abspath(os.path.expanduser(self.uri)))

    @property
    def local(self) -> Path | None:
        """The folder as a local path, or None where it is remote."""
        return None if "://" in self.uri else Path(self.uri)

    def __str__(self) -> str:
        return self.uri

    def locate(self, path: str) -> str:
        """The location of a file or folder below, as a local path or a URI; options of this URI stay at its end."""
        base, mark, options = self.uri.partition("?") if "://" in self.uri else (self.uri, "", "")
        return f"{base.rstrip('/')}/{path}{mark}{options}"

    def _open(self) -> tuple[fs.FileSystem, str]:
        try:
            return retrying(functools.partial(_file_system, self.uri))
        except (OSError, ValueError, pa.ArrowException) as error:
            if isinstance(error, OSError) and not REFUSED.search(str(error)):
                raise
            raise UserError(
                f"{self.uri}: cannot be opened ({error}); give a folder or a URI such as s3://bucket/path"
            ) from error

    def _call(self, function: Callable[[fs.FileSystem, str], Result], path: str) -> Result:
        """Apply a function to a file or folder below; on an object store, transient failures are retried."""
        filesystem, root = self._open()
        target = posixpath.join(root, path)
        return function(filesystem, target) if self.local else retrying(lambda: function(filesystem, target))

    def open(self, path: str) -> pa.NativeFile:
        """Open a file for random access.

        Raises:
            OSError: It cannot be read, or is not a regular file (opening a FIFO would block).
        """
        self._require_file(path)
        return self._call(lambda filesystem, target: filesystem.open_input_file(target), path)

    def read(self, path: str, limit: int | None = None) -> bytes | None:
        """The content of a file or its first ``limit`` bytes, or None if there is no such regular file."""

        def read(filesystem: fs.FileSystem, target: str) -> bytes:
            with filesystem.open_input_stream(target) as stream:
                return stream.read(limit)

        try:
            self._require_file(path)
            return self._call(read, path)
        except FileNotFoundError:
            return None

    @contextlib.contextmanager
    def writing(self, path: str, *, replace: bool = True) -> Iterator[pa.NativeFile]:
        """A stream whose content becomes the file if the block succeeds, and is discarded otherwise.

        A local file is written as data arrive, under a temporary name; an object is buffered in memory and written at the end.

        Raises:
            FullError: There is no space; the file is unchanged.
            FileExistsError: `replace` is False and the file exists.
        """
        with self._naming_full(path):
            if self.local:
                target = self.local / path
                target.parent.mkdir(parents=True, exist_ok=True)
                with published(target, replace) as temporary, pa.OSFile(str(temporary), "wb") as stream:
                    yield stream
            else:
                stream = pa.BufferOutputStream()
                yield stream
                content = stream.getvalue()
                if not replace and self.size(path) is not None:
                    raise FileExistsError(errno.EEXIST, "there is one", self.locate(path))
                self._call(lambda filesystem, target: _put(filesystem, target, content), path)

    def write(self, path: str, content: bytes | memoryview | pa.Buffer) -> None:
        """Write a file atomically; see `writing`."""
        with self.writing(path) as stream:
            stream.write(content)

    def extend(self, path: str, content: bytes) -> None:
        """Write a file atomically, but append in place where a local file is already a prefix of `content`.

        A program that follows the file keeps it open and would not notice a replacement.

        Raises:
            FullError: There is no space. The next call completes a truncated file.
        """
        old = self.read(path) if self.local else None
        if self.local is None or not old or not content.startswith(old):
            self.write(path, content)
            return
        with self._naming_full(path), (self.local / path).open("ab") as file:
            file.write(content[len(old) :])

    @contextlib.contextmanager
    def _naming_full(self, path: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not is_full(error):
                raise
            raise FullError(
                f"{self.uri}: no room: {path} could not be written; make room there and run the same command again: it "
                "continues from what is there"
            ) from error

    def rename(self, path: str, new: str) -> None:
        """Rename a file, replacing an existing one."""
        self._call(lambda filesystem, target: filesystem.move(target, posixpath.join(self._open()[1], new)), path)

    def delete(self, path: str) -> None:
        """Remove a file if it exists."""
        with contextlib.suppress(FileNotFoundError):
            if self.local is None or self.size(path) is not None:
                self._call(lambda filesystem, target: filesystem.delete_file(target), path)

    def delete_folder(self, path: str) -> None:
        """Remove a folder and its contents, if it exists."""
        with contextlib.suppress(FileNotFoundError):
            self._call(lambda filesystem, target: filesystem.delete_dir(target), path)

    def write_if_absent(self, path: str, content: bytes) -> bool:
        """Create a file unless it exists; returns whether it was created.

        A file system decides this atomically, whatever an NFS client has cached. On an object store it is a check followed
        by a put, so a file created in between is replaced: Arrow has no conditional put.
        """
        try:
            with self.writing(path, replace=False) as stream:
                stream.write(content)
        except FileExistsError:
            return False
        return True

    def _require_file(self, path: str) -> None:
        """Opening a FIFO would block."""
        if self.local and not (self.local / path).is_file():
            raise FileNotFoundError(errno.ENOENT, "no such file", str(self.local / path))

    def size(self, path: str) -> int | None:
        """The size of a regular file in bytes, or None if there is no such file."""
        if self.local and not (self.local / path).is_file():  # Arrow reports a FIFO as unknown, and follows links
            return None
        found = self._call(lambda filesystem, target: filesystem.get_file_info(target), path)
        return found.size if found.type == fs.FileType.File else None

    def folders(self, path: str = "") -> list[str]:
        """Names of the folders directly below ``path``, sorted."""
        return self._names(path, fs.FileType.Directory)

    def files(self, path: str = "") -> list[str]:
        """Names of the files directly below ``path``, sorted."""
        return self._names(path, fs.FileType.File)

    def tree(self, path: str) -> list[str]:
        """Relative paths of all files and folders below ``path``, sorted; one request lists a thousand."""
        found, root = self._list(path, recursive=True)
        return sorted(info.path.removeprefix(root).lstrip("/") for info in found)

    def _names(self, path: str, kind: fs.FileType) -> list[str]:
        return sorted(info.base_name for info in self._list(path, recursive=False)[0] if info.type == kind)

    def _list(self, path: str, recursive: bool) -> tuple[list[fs.FileInfo], str]:
        """The entries below a folder, none if it does not exist, and the folder's own path in its file system."""

        def ask(filesystem: fs.FileSystem, target: str) -> tuple[list[fs.FileInfo], str]:
            selector = fs.FileSelector(target, allow_not_found=True, recursive=recursive)
            return filesystem.get_file_info(selector), target

        try:
            return self._call(ask, path)
        except FileNotFoundError:  # created between Arrow's failed open and its existence check
            return self._call(ask, path)

    def check_writable(self) -> None:
        """Write and remove a probe file.

        Raises:
            UserError: The folder cannot be written.
        """
        probe = f".probe-{uuid.uuid4().hex[:8]}"
        try:
            self.write(probe, b"")
            self.delete(probe)
        except OSError as error:
            raise UserError(
                f"{self.uri}: cannot be written ({error}); choose another, or correct its permissions"
            ) from error


def _put(filesystem: fs.FileSystem, target: str, content: bytes | memoryview | pa.Buffer) -> None:
    with filesystem.open_output_stream(target) as stream:
        stream.write(content)
