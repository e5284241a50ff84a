"""Safe reading of damaged or hostile HDF5 files: one-line errors, no code execution, no access to other files.

pandas stores column names in attributes that PyTables unpickles, and text of its "fixed" format as pickled arrays. While a
file is read here, PyTables unpickles only numbers, text, containers of them, arrays and PyTables' filters; any other pickle
is returned as raw bytes, unexecuted. The HDF5 C library itself is trusted.
"""

from __future__ import annotations

import functools
import io
import itertools
import operator
import pickle
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py

from scaling.errors import UserError

LINKS = 16
"""Maximum number of soft links followed to one array, as in HDF5 itself."""
HARMLESS = {
    *((module, "object") for module in ("builtins", "__builtin__")),
    *((module, "_reconstructor") for module in ("copy_reg", "copyreg")),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *(("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"), ("tables.filters", "Filters")),
}
_guarded: ContextVar[bool] = ContextVar("guarded", default=False)
_pytables = threading.Lock()
"""PyTables' registry of open files and ``warnings.catch_warnings`` belong to the process, and neither is thread-safe."""


@contextmanager
def reading(path: Path, what: str, remedy: str = "copy the file again") -> Iterator[None]:
    """Convert any exception of h5py, PyTables, pandas or numpy on a file's content into a one-line `UserError`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # damaged bytes raise a dozen types; no list is complete
        raise UserError(f"{path}: {what} cannot be read ({reason(error)}): {remedy}") from error


def reason(error: Exception) -> str:
    """The last line of an exception's message; PyTables' messages begin with HDF5's own trace."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return shown(lines[-1])[:200]


def shown(text: str) -> str:
    """A name from a file, made safe for one line of a terminal."""
    return text if text.isprintable() else ascii(text)


@contextmanager
def no_code_from_pickles() -> Iterator[None]:
    """Within the block, one thread at a time, PyTables unpickles only plain values and its warnings are silenced."""
    _guard_pytables()
    token = _guarded.set(True)
    try:
        with _pytables, warnings.catch_warnings(action="ignore"):
            yield
    finally:
        _guarded.reset(token)


class _PlainUnpickler(pickle._Unpickler):
    """The pure-Python unpickler: the C one allocates any requested memo, up to 64 GiB for five bytes of pickle."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in HARMLESS:
            raise pickle.UnpicklingError(f"a pickled {module}.{name}, which is not loaded")
        return super().find_class(module, name)


@functools.cache
def _guard_pytables() -> None:
    """Replace pickle's ``loads`` by a guarded version in the two PyTables modules that unpickle."""
    import tables

    def loads(data: bytes, **options: Any) -> Any:
        return _PlainUnpickler(io.BytesIO(data), **options).load() if _guarded.get() else pickle.loads(data, **options)

    guarded = SimpleNamespace(loads=loads, dumps=pickle.dumps, HIGHEST_PROTOCOL=pickle.HIGHEST_PROTOCOL)
    tables.attributeset.pickle = tables.atom.pickle = guarded


def find(file: h5py.File, name: str) -> h5py.Group | h5py.Dataset | h5py.Datatype | None:
    """The object at a path, or None; raises a `UserError` if the path leads out of the file or in a cycle.

    h5py itself would open any file that an external link names, and block on a FIFO.
    """
    here, parts, links = file, name.split("/")[::-1], 0
    while parts:
        if not (part := parts.pop()):
            continue
        link = here.get(part, getlink=True) if isinstance(here, h5py.Group) else None
        if link is None:
            return None
        if isinstance(link, h5py.ExternalLink):
            raise UserError(f"{file.filename}: {name} is a link to another file: copy what it leads to into this file")
        if isinstance(link, h5py.SoftLink):
            links += 1
            if links > LINKS:
                raise UserError(f"{file.filename}: {name} is a link that leads in a circle: store the array there")
            here = file if link.path.startswith("/") else here
            parts += link.path.split("/")[::-1]
        else:
            here = here[part]
    return here


def find_array(file: h5py.File, name: str) -> h5py.Dataset | None:
    """``find`` for an array; None for anything else. Raises a `UserError` if its values are stored in another file."""
    found = find(file, name)
    if not isinstance(found, h5py.Dataset):
        return None
    if found.is_virtual or found.external:
        raise UserError(f"{file.filename}: the values of {name} are in other files: copy them into this file")
    return found


def check_attributes(file: h5py.File, name: str) -> None:
    """Read all attributes on the path to a group and below it: h5py raises for damaged ones, whereas PyTables crashes.

    PyTables also crashes on attribute names that are not UTF-8, which h5py reads as surrogates.
    """
    nodes = list(itertools.accumulate(name.split("/"), operator.getitem, initial=file))
    nodes[-1].visititems(lambda _, found: nodes.append(found))
    for node in nodes:
        " ".join([str(node.name), *dict(node.attrs)]).encode()
