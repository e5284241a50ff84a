"""A folder, local or at any URI that pyarrow's file systems open (s3://, gs://, …): its files are read and written whole."""

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
    """The process's one client for the server and settings of a URI, and the path there."""
    once = "allow_delayed_open=true"  # a small object is written by one request, not by three
    if uri.startswith("s3://") and "allow_delayed_open=" not in uri:
        uri += f"{'&' if '?' in uri else '?'}{once}"
    new, path = fs.FileSystem.from_uri(uri)
    client = next((client for client in _CLIENTS if client == new), new)
    if client is new:
        _CLIENTS.append(new)
    return client, path


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder, local or at a URI. Files in it are named by their path below it, with slashes."""

    uri: str

    @classmethod
    def at(cls, location: Location | Folder) -> Self:
        """The folder at a location, as an absolute path or URI."""
        return location if isinstance(location, cls) else cls(str(location))

    def __post_init__(self) -> None:
        """Make a local path absolute, so that workers elsewhere resolve it alike; refuse a URI with a password."""
        require_no_password(self.uri, "folder")
        if self.uri.startswith("file://"):
            object.__setattr__(self, "uri", self.uri.removeprefix("file://"))
        if "://" not in self.uri:
            object.__setattr__(self, "uri", os.path.abspath(os.path.expanduser(self.uri)))

    @property
    def local(self) -> Path | None:
        """The folder as a local path, or None where it is elsewhere."""
        return None if "://" in self.uri else Path(self.uri)

    def __str__(self) -> str:
        return self.uri

    def locate(self, path: str) -> str:
        """The place of a file or folder below, as a local path or a URI; options of this URI stay at its end."""
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
        """Do something with a file or folder below; on an object store again where it fails for a passing reason."""
        filesystem, root = self._open()
        target = posixpath.join(root, path)
        return function(filesystem, target) if self.local else retrying(lambda: function(filesystem, target))

    def open(self, path: str) -> pa.NativeFile:
        """A file to read at any place.

        Raises:
            OSError: It cannot be read, or is no regular file: a FIFO would be waited for.
        """
        self._require_file(path)
        return self._call(lambda filesystem, target: filesystem.open_input_file(target), path)

    def read(self, path: str, limit: int | None = None) -> bytes | None:
        """The content of a file or its first ``limit`` bytes, or None if there is no regular file of this name."""

        def read(filesystem: fs.FileSystem, target: str) -> bytes:
            with filesystem.open_input_stream(target) as stream:
                return stream.read(limit)

        if self.local and self.size(path) is None:  # a FIFO would be waited for
            return None
        try:
            self._require_file(path)
            return self._call(read, path)
        except FileNotFoundError:
            return None

    @contextlib.contextmanager
    def writing(self, path: str, *, replace: bool = True) -> Iterator[pa.NativeFile]:
        """A stream whose content becomes a file when the block ends well, and is dropped when it does not.

        It is written to a local disk as it comes, under a temporary name, and to an object store from memory, at the end.

        Raises:
            FullError: There is no room; the file is as it was.
            FileExistsError: Not to `replace` one, and there is one.
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
        """Write a file whole; see `writing`."""
        with self.writing(path) as stream:
            stream.write(content)

    def extend(self, path: str, content: bytes, head: int) -> None:
        """Write a file whole; but where it is the beginning of `content` on a local disk, it grows in place.

        A program that follows the file has it open, and would not see another that takes its name. The first `head` bytes
        may differ.

        Raises:
            FullError: There is no room. The next call completes what was cut short.
        """
        old = (self.read(path) if self.local else None) or b""
        if self.local is None or len(old) < head or old[head:] != content[head : len(old)]:
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
        """Give a file another name, in place of what had it."""
        self._call(lambda filesystem, target: filesystem.move(target, posixpath.join(self._open()[1], new)), path)

    def delete(self, path: str) -> None:
        """Remove a file if it is there."""
        with contextlib.suppress(FileNotFoundError):
            if self.local is None or self.size(path) is not None:
                self._call(lambda filesystem, target: filesystem.delete_file(target), path)

    def delete_folder(self, path: str) -> None:
        """Remove a folder and all in it, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._call(lambda filesystem, target: filesystem.delete_dir(target), path)

    def write_if_absent(self, path: str, content: bytes) -> bool:
        """Write a file unless there is one; returns whether it was written.

        A file system decides that in one step, whatever an NFS client remembers. An object store is asked first, and a file
        that comes between is replaced: Arrow has no conditional put.
        """
        try:
            with self.writing(path, replace=False) as stream:
                stream.write(content)
        except FileExistsError:
            return False
        return True

    def _require_file(self, path: str) -> None:
        if self.local and not (self.local / path).is_file():
            raise FileNotFoundError(errno.ENOENT, "no such file", str(self.local / path))

    def size(self, path: str) -> int | None:
        """The bytes of a regular file, or None if there is none of this name."""
        if self.local and not (self.local / path).is_file():  # Arrow calls a FIFO unknown, and a link what it points to
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
        """All files and folders below ``path``, by their path from there, sorted; a thousand with one request."""
        found, root = self._list(path, recursive=True)
        return sorted(info.path.removeprefix(root).lstrip("/") for info in found)

    def _names(self, path: str, kind: fs.FileType) -> list[str]:
        return sorted(info.base_name for info in self._list(path, recursive=False)[0] if info.type == kind)

    def _list(self, path: str, recursive: bool) -> tuple[list[fs.FileInfo], str]:
        """What lies below a folder, nothing where there is none, and the folder's own path in its filesystem."""

        def ask(filesystem: fs.FileSystem, target: str) -> tuple[list[fs.FileInfo], str]:
            selector = fs.FileSelector(target, allow_not_found=True, recursive=recursive)
            return filesystem.get_file_info(selector), target

        try:
            return self._call(ask, path)
        except FileNotFoundError:  # created after Arrow could not open it, before Arrow asked whether it exists
            return self._call(ask, path)

    def check_writable(self) -> None:
        """Write and remove a probe.

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
