"""Pickles that leave a mark when they are loaded, in the kinds of files that can hold one."""

import io
import os
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

OBJECT = "ray.data.arrow_pickled_object"


class Bomb:
    """Loaded by pickle, it makes a folder."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.makedirs, (self.mark, 0o777, True)


def pickled(mark, protocol=2):
    return pickle.dumps(Bomb(mark), protocol)  # PyTorch expects 2, and Ray Data's column cannot read it


def torch_file(mark, **beside):
    file = io.BytesIO()
    torch.save({"bomb": Bomb(mark), **beside}, file)
    return file.getvalue()


def npz(mark):
    file = io.BytesIO()
    np.savez(file, weight=np.array([Bomb(mark)], dtype=object), bias=np.zeros(1))
    return file.getvalue()


def column(mark, rows=1, kind=OBJECT):
    """A column's field and values: of Ray Data's pickled objects, bare or within another type, or of its tensors."""
    text = pickled(mark, 4)
    if kind == OBJECT:
        field, values = pa.field("bomb", pa.large_binary(), metadata=_extension(OBJECT)), [text] * rows
    elif kind == "nested":
        inside = pa.field("inside", pa.large_binary(), metadata=_extension(OBJECT))
        field, values = pa.field("bomb", pa.struct([inside])), [{"inside": text}] * rows
    else:
        field, values = pa.field("bomb", pa.list_(pa.float32()), metadata=_extension(kind, text)), [[1.0]] * rows
    return field, pa.array(values, field.type)


def parquet(mark, table=None, kind=OBJECT):
    """A Parquet file of a table, if there is one, and the column."""
    field, values = column(mark, 1 if table is None else len(table), kind)
    whole = pa.table([values], pa.schema([field])) if table is None else table.append_column(field, values)
    file = io.BytesIO()
    pq.write_table(whole, file)
    return file.getvalue()


def _extension(name, content=b""):
    return {"ARROW:extension:name": name, "ARROW:extension:metadata": content}
