"""Whole files in a folder, or at any URI that pyarrow's filesystems open, written so that a reader never sees half of one."""

from __future__ import annotations

import contextlib
import errno
import posixpath
import uuid
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from scaling.errors import UserError

FULL = "no room in the store:"
"""How the message of a `StoreFullError` begins."""

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class StoreFullError(UserError):
    """The store has no room left. Nothing in it is lost; what runs can go on once there is room."""


@dataclass(frozen=True, slots=True)
class Store:
    """Reads and writes whole files, atomically: a reader never sees half of one."""

    uri: str

    def __post_init__(self) -> None:
        """Make a local path absolute, so that workers elsewhere resolve it alike."""
        if "://" not in self.uri:
            object.__setattr__(self, "uri", str(Path(self.uri).expanduser().absolute()))

    @property
    def local(self) -> Path | None:
        """The store as a local path, or None where it is elsewhere."""
        return (
            None if "://" in self.uri and not self.uri.startswith("file://") else Path(self.uri.removeprefix("file://"))
        )

    def locate(self, path: str) -> str:
        """The place of a file or folder of the store, as a local path or a URI; options of the store's URI stay at its end."""
        base, mark, options = self.uri.partition("?") if "://" in self.uri else (self.uri, "", "")
        return f"{base.rstrip('/')}/{path}{mark}{options}"

    def _open(self) -> tuple[fs.FileSystem, str]:
        try:
            return fs.FileSystem.from_uri(self.uri)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise UserError(
                f"--store {self.uri}: cannot be opened ({error}); give a folder or a URI such as s3://bucket/path"
            ) from error

    def write(self, path: str, content: bytes) -> None:
        """Write a file under a temporary name and rename it (object stores publish a file when it is closed).

        Raises:
            StoreFullError: there is no room; the file is as it was.
        """
        filesystem, root = self._open()
        target = posixpath.join(root, path)
        temporary = f"{target}.{uuid.uuid4().hex[:8]}.partial" if self.local else target
        try:
            filesystem.create_dir(posixpath.dirname(target), recursive=True)
            with filesystem.open_output_stream(temporary) as stream:
                stream.write(content)
            if temporary != target:
                filesystem.move(temporary, target)
        except OSError as error:
            if temporary != target:
                with contextlib.suppress(OSError):
                    filesystem.delete_file(temporary)
            if error.errno not in NO_ROOM:
                raise
            raise StoreFullError(
                f"{FULL} --store {self.uri}: {len(content):,} bytes of {path} could not be written; make room there "
                "and run the same command again: it goes on from what is there"
            ) from error

    def read(self, path: str, limit: int | None = None) -> bytes | None:
        """The content of a file or its first `limit` bytes, or None if there is none."""
        filesystem, root = self._open()
        try:
            with filesystem.open_input_stream(posixpath.join(root, path)) as stream:
                return stream.read(limit)
        except FileNotFoundError:
            return None

    def rename(self, path: str, new: str) -> None:
        """Give a file another name, in place of what had it."""
        filesystem, root = self._open()
        filesystem.move(posixpath.join(root, path), posixpath.join(root, new))

    def delete(self, path: str) -> None:
        """Remove a file if it is there."""
        filesystem, root = self._open()
        if filesystem.get_file_info(posixpath.join(root, path)).type != fs.FileType.NotFound:
            filesystem.delete_file(posixpath.join(root, path))

    def delete_folder(self, path: str) -> None:
        """Remove a folder and all in it, if it is there."""
        filesystem, root = self._open()
        if filesystem.get_file_info(posixpath.join(root, path)).type != fs.FileType.NotFound:
            filesystem.delete_dir(posixpath.join(root, path))

    def folders(self, path: str = "") -> list[str]:
        """Names of the folders directly below `path`, sorted."""
        filesystem, root = self._open()
        selector = fs.FileSelector(posixpath.join(root, path), allow_not_found=True)
        return sorted(
            info.base_name for info in filesystem.get_file_info(selector) if info.type == fs.FileType.Directory
        )

    def files(self, path: str = "") -> list[str]:
        """Names of the files directly below `path`, sorted."""
        filesystem, root = self._open()
        selector = fs.FileSelector(posixpath.join(root, path), allow_not_found=True)
        return sorted(info.base_name for info in filesystem.get_file_info(selector) if info.type == fs.FileType.File)

    def check_writable(self) -> None:
        """Write and remove a probe.

        Raises:
            UserError: if the store cannot be written.
        """
        probe = f".probe-{uuid.uuid4().hex[:8]}"
        try:
            self.write(probe, b"")
            self.delete(probe)
        except OSError as error:
            raise UserError(
                f"--store {self.uri}: cannot be written ({error}); choose another or mend its permissions"
            ) from error

    def simulated(self, digest: str) -> Path:
        """Where simulated spectra of a given digest and their shards lie.

        Raises:
            UserError: if the store is not local; HDF5 files need a file system.
        """
        if self.local is None:
            raise UserError(
                f"--store {self.uri}: simulated spectra need a local store; use a folder, or a study on shards"
            )
        return self.local / "data" / digest
