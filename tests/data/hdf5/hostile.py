"""Edits that make a file of spectra one that nobody should trust; each must end in one line, not in a traceback."""

import os

import h5py
import numpy as np
import pandas as pd

from scaling.data.hdf5.reader import ERROR_ARRAY, FLUX_ARRAY, PARAMS, WAVE
from tests import bombs

ROWS, PIXELS = 8, 16


def write(path):
    """A small file without fault."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as raw:
        raw[WAVE] = np.linspace(7100.0, 8850.0, PIXELS)
        raw[FLUX_ARRAY], raw[ERROR_ARRAY] = rng.uniform(0.4, 0.6, (ROWS, PIXELS)), np.full((ROWS, PIXELS), 0.1)
        raw["dataset/arrays/mask/value"] = np.zeros((ROWS, PIXELS), np.int64)
    params().to_hdf(path, key=PARAMS, format="table")
    return path


def params(**columns):
    known = {"id": np.arange(ROWS), "log_g": np.linspace(1, 5, ROWS), "interp_param": ["log_g"] * ROWS}
    return pd.DataFrame(known | columns)


def put(name, value):
    """An edit that puts something else in a place."""

    def change(path):
        with h5py.File(path, "a") as raw:
            if name in raw:
                del raw[name]
            raw[name] = value

    return change


def table(frame, **options):
    """An edit that writes other parameters."""

    def change(path):
        with h5py.File(path, "a") as raw:
            del raw[PARAMS]
        frame.to_hdf(path, key=PARAMS, **({"format": "table"} | options))

    return change


def group(name):
    def change(path):
        with h5py.File(path, "a") as raw:
            del raw[name]
            raw.create_group(name)

    return change


def circle(path):
    put("dataset/arrays/flux", h5py.SoftLink("/dataset/arrays/other"))(path)
    put("dataset/arrays/other", h5py.SoftLink("flux"))(path)


def to_fifo(path, name=FLUX_ARRAY):
    fifo = path.with_name("fifo.h5")
    if not fifo.exists():
        os.mkfifo(fifo)
    put(name, h5py.ExternalLink(str(fifo), "x"))(path)


def external_values(path):
    with h5py.File(path, "a") as raw:
        del raw[FLUX_ARRAY]
        raw.create_dataset(FLUX_ARRAY, (ROWS, PIXELS), "f8", external=[(str(path.with_name("fifo.h5")), 0, 1024)])


def virtual_values(path):
    layout = h5py.VirtualLayout((ROWS, PIXELS), "f8")
    layout[:] = h5py.VirtualSource(str(path.with_name("absent.h5")), "x", (ROWS, PIXELS))
    with h5py.File(path, "a") as raw:
        del raw[FLUX_ARRAY]
        raw.create_virtual_dataset(FLUX_ARRAY, layout)


def declared_rows(path):
    """A header that promises 10¹² spectra."""
    with h5py.File(path, "a") as raw:
        for name in (FLUX_ARRAY, ERROR_ARRAY):
            del raw[name]
            raw.create_dataset(name, (10**12, PIXELS), "f8", chunks=(1, PIXELS))
        dtype = raw[f"{PARAMS}/table"].dtype
        del raw[f"{PARAMS}/table"]
        raw.create_dataset(f"{PARAMS}/table", (10**12,), dtype, chunks=(1,))


def attribute(place, name, value):
    def change(path):
        with h5py.File(path, "a") as raw:
            raw[place].attrs[name] = value

    return change


def not_utf8(path):
    with h5py.File(path, "a") as raw:
        rows = raw[f"{PARAMS}/table"][:]
        rows["values_block_2"] = b"\xff\xfe"
        raw[f"{PARAMS}/table"][...] = rows


def nested(depth):
    return b"(" * depth + b"t" * depth + b"."


def two_of_a_name(path):
    table(pd.DataFrame(np.ones((ROWS, 2)), columns=["a", "b"]), format="fixed")(path)
    with h5py.File(path, "a") as raw:
        raw[f"{PARAMS}/axis0"][:] = raw[f"{PARAMS}/block0_items"][:] = b"a"


def code_in_names(path):
    attribute(PARAMS, "non_index_axes", np.bytes_(bombs.pickled(path.with_name("executed"), 0)))(path)


def code_in_fixed_text(path):
    class Text(str):
        def __reduce__(self):
            return open, (str(path.with_name("executed")), "w")

    frame = params()
    frame["interp_param"] = pd.Series([Text("a")] * ROWS, dtype=object)
    table(frame, format="fixed")(path)


FLUXES = {"flux": FLUX_ARRAY, "error": ERROR_ARRAY, "wave": WAVE}
SHAPES = {"flux": (ROWS, PIXELS), "error": (ROWS, PIXELS), "wave": (PIXELS,)}
REAL = "expected real numbers"
EDITS = {
    **{f"{key} is a group": (group(name), "no ") for key, name in FLUXES.items()},
    **{f"{key} is a scalar": (put(name, 1.0), r"is \(\)|no ") for key, name in FLUXES.items()},
    **{f"{key} is empty": (put(name, h5py.Empty("f8")), "is None") for key, name in FLUXES.items()},
    **{f"{key} has no rows": (put(name, np.zeros((0, *SHAPES[key][1:]))), r"\(0,") for key, name in FLUXES.items()},
    **{f"{key} is complex": (put(name, np.ones(SHAPES[key], "c16")), REAL) for key, name in FLUXES.items()},
    **{f"{key} is text": (put(name, np.full(SHAPES[key], b"a")), REAL) for key, name in FLUXES.items()},
    **{f"{key} is truth": (put(name, np.ones(SHAPES[key], bool)), REAL) for key, name in FLUXES.items()},
    **{f"{key} is a compound": (put(name, np.zeros(SHAPES[key], "f8,f8")), REAL) for key, name in FLUXES.items()},
    **{
        f"{key} is strings": (put(name, np.full(SHAPES[key], "a", h5py.string_dtype())), REAL)
        for key, name in FLUXES.items()
    },
    "arrays are an array": (put("dataset/arrays", np.ones(3)), "no "),
    "the table is a group": (group(f"{PARAMS}/table"), "no dataset/params/table"),
    "the parameters are an array": (put(PARAMS, np.ones(ROWS)), "no dataset/params/table"),
    "the table is no pandas table": (put(f"{PARAMS}/table", np.zeros(ROWS)), f"{PARAMS} cannot be read"),
    "a Series": (table(params()["log_g"]), "a pandas Series"),
    "a two-level index of columns": (
        table(
            pd.DataFrame(np.ones((ROWS, 2)), columns=pd.MultiIndex.from_tuples([("a", "b"), ("a", "c")])),
            format="fixed",
        ),
        "give each column one name|cannot be read",
    ),
    "whole numbers for names": (table(pd.DataFrame(np.ones((ROWS, 2)))), "has a column 0"),
    "two columns of a name": (two_of_a_name, "uniquely valued|two columns 'a'"),
    "a name of two lines": (table(params(**{"a\nb": 1.0}), format="fixed"), r"has a column 'a\\nb'"),
    "flux in a circle": (circle, "in a circle"),
    "flux leads nowhere": (put(FLUX_ARRAY, h5py.SoftLink("/nowhere")), f"no {FLUX_ARRAY}"),
    "flux is elsewhere": (put(FLUX_ARRAY, h5py.ExternalLink("absent.h5", "x")), "link to another file"),
    "flux is behind a FIFO": (to_fifo, "link to another file"),
    "flux leads to a link to another file": (
        lambda path: (
            put("other", h5py.ExternalLink("absent.h5", "x"))(path),
            put(FLUX_ARRAY, h5py.SoftLink("/other"))(path),
        ),
        "link to another file",
    ),
    "parameters are elsewhere": (put(PARAMS, h5py.ExternalLink("absent.h5", "x")), "link to another file"),
    "a part of the parameters is behind a FIFO": (
        lambda path: (table(params(), format="fixed")(path), to_fifo(path, f"{PARAMS}/block0_values")),
        "cannot be read|link to another file",
    ),
    "values are elsewhere": (external_values, "are in other files"),
    "values are virtual": (virtual_values, "are in other files"),
    "too many rows": (declared_rows, "too small"),
    "wave is infinite": (put(WAVE, np.append(np.arange(PIXELS - 1.0), np.inf)), "not finite"),
    "wave is NaN": (put(WAVE, np.append(np.arange(PIXELS - 1.0), np.nan)), "not finite"),
    "wave stands still": (put(WAVE, np.ones(PIXELS)), "does not increase"),
    "text that is not UTF-8": (not_utf8, "can't decode"),
    "text that only surrogates can hold": (
        table(params(kind=pd.Series(["\udcff"] * ROWS, dtype=object)), format="fixed"),
        "write its text in UTF-8|cannot be read",
    ),
    "code in names": (code_in_names, "cannot be read"),
    "code in text": (code_in_fixed_text, "cannot be read"),
    "pickles without end": (attribute(PARAMS, "non_index_axes", np.bytes_(nested(5000))), "cannot be read"),
    "a kind of table that is not": (attribute(PARAMS, "table_type", np.bytes_(b"x")), "cannot be read"),
    **{
        f"a column {name}": (table(params(**{name: 1.0})), f"parameter column '{name}' has a name that shards use")
        for name in ("row_id", "flux", "error")
    },
    "dates": (table(params(when=pd.Timestamp("2026-01-01"))), "'when' is datetime64.*shards keep numbers"),
    "times": (table(params(when=pd.Timedelta("1h"))), "'when' is timedelta64.*shards keep numbers"),
    "objects": (
        table(params(kind=pd.Series([[1]] * ROWS, dtype=object)), format="fixed"),
        "'kind' is object.*shards keep",
    ),
    "complex parameters": (table(params(c=1j), format="fixed"), "'c' is complex128.*shards keep"),
}
"""Edit and what is to be said of it."""
FAULTY_ROWS = {
    "errors too small": (put(ERROR_ARRAY, np.full((ROWS, PIXELS), 1e-40)), "SNR is not finite"),
    "rows never written": (put(FLUX_ARRAY, np.zeros((ROWS, PIXELS))), "never written"),
    "flux is infinite": (put(FLUX_ARRAY, np.full((ROWS, PIXELS), 1e300)), "flux is not finite"),
}
SOUND = {
    **{
        f"{key} is {dtype}": put(name, (np.arange(np.prod(SHAPES[key])) % 99 + 1).reshape(SHAPES[key]).astype(dtype))
        for key, name in FLUXES.items()
        for dtype in ("u1", "i4", "f2", ">f4", np.longdouble)
    },
    "a soft link": lambda path: (
        put("elsewhere", np.full((ROWS, PIXELS), 0.5))(path),
        put(FLUX_ARRAY, h5py.SoftLink("/elsewhere"))(path),
    ),
    "code that nobody asks for": lambda path: attribute(
        PARAMS, "note", np.bytes_(bombs.pickled(path.with_name("executed"), 0))
    )(path),
    "text in the fixed format": table(params(), format="fixed"),
    "categories": table(params(kind=pd.Categorical(["a", "b"] * (ROWS // 2)))),
    "a truth value": table(params(good=True)),
}
"""Edits that leave a file to be used."""
