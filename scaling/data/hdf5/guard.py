"""What a damaged or hostile HDF5 file can do: be refused in one line, run no code, lead to no other file.

pandas keeps column names in attributes that PyTables unpickles, and text of its "fixed" format as pickled arrays. While a
file is read here, PyTables' unpickling makes numbers, text, containers of them, arrays and PyTables' filters only: any
other pickle is not executed, and is read as the bytes that it is. The HDF5 library itself, written in C, is trusted.
"""

from __future__ import annotations

import functools
import io
import itertools
import operator
import pickle
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
"""Soft links followed on the way to one array, as many as HDF5 itself follows."""
HARMLESS = {
    *((module, "object") for module in ("builtins", "__builtin__")),
    *((module, "_reconstructor") for module in ("copy_reg", "copyreg")),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *(("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"), ("tables.filters", "Filters")),
}
_guarded: ContextVar[bool] = ContextVar("guarded", default=False)


@contextmanager
def reading(path: Path, what: str, remedy: str = "copy the file again") -> Iterator[None]:
    """Whatever h5py, PyTables, pandas or numpy raise over the content of a file becomes a `UserError`, in one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # no list of types is complete: damaged bytes end in a dozen of them
        raise UserError(f"{path}: {what} cannot be read ({reason(error)}): {remedy}") from error


def reason(error: Exception) -> str:
    """Why, in one line: the last line of what an exception says: PyTables' begin with HDF5's own trace."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return shown(lines[-1])[:200]


def shown(text: str) -> str:
    """A name from a file, for one line of a terminal."""
    return text if text.isprintable() else ascii(text)


@contextmanager
def no_code_from_pickles() -> Iterator[None]:
    """PyTables unpickles plain values only inside the block, and warns of nothing."""
    _guard_pytables()
    token = _guarded.set(True)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        _guarded.reset(token)


class _PlainUnpickler(pickle._Unpickler):
    """Python's own: the one in C makes room for as many memos as a number in the pickle says, up to 64 GiB for five bytes."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in HARMLESS:
            raise pickle.UnpicklingError(f"a pickled {module}.{name}, which is not loaded")
        return super().find_class(module, name)


@functools.cache
def _guard_pytables() -> None:
    """Put a guarded ``loads`` in the place of pickle's in the two modules of PyTables that unpickle."""
    import tables

    def loads(data: bytes, **options: Any) -> Any:
        return _PlainUnpickler(io.BytesIO(data), **options).load() if _guarded.get() else pickle.loads(data, **options)

    guarded = SimpleNamespace(loads=loads, dumps=pickle.dumps, HIGHEST_PROTOCOL=pickle.HIGHEST_PROTOCOL)
    tables.attributeset.pickle = tables.atom.pickle = guarded


def find(file: h5py.File, name: str) -> h5py.Group | h5py.Dataset | h5py.Datatype | None:
    """What a path leads to, None where there is nothing; a `UserError` where it leads out of the file, or in a circle.

    h5py itself would open whatever file an external link names, a FIFO too, and wait.
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
    """``find`` for an array, None where there is none or something else; a `UserError` where its values are elsewhere."""
    found = find(file, name)
    if not isinstance(found, h5py.Dataset):
        return None
    if found.is_virtual or found.external:
        raise UserError(f"{file.filename}: the values of {name} are in other files: copy them into this file")
    return found


def check_attributes(file: h5py.File, name: str) -> None:
    """Read all attributes on the way to a group and below it: of damaged ones h5py raises where PyTables crashes.

    It also crashes where the name of one is not UTF-8, which h5py reads with surrogates in it.
    """
    nodes = list(itertools.accumulate(name.split("/"), operator.getitem, initial=file))
    nodes[-1].visititems(lambda _, found: nodes.append(found))
    for node in nodes:
        " ".join([str(node.name), *dict(node.attrs)]).encode()
