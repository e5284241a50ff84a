"""What the tests of conversion share."""

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from scaling.data.hdf5.reader import open_spectra
from scaling.data.shards import convert as convert_module
from scaling.data.shards.datasink import ShardDatasink
from scaling.data.shards.manifest import Manifest
from scaling.data.shards.pipeline import write_shards_here
from scaling.data.shards.shard import column_values


def without_ray(patch):
    """Patch conversions to run in this process; returns the list of the shards that are written from now on."""
    written, put = [], ShardDatasink._put

    def noted(sink, encoder, unfinished):
        written.append(encoder.planned.file)
        return put(sink, encoder, unfinished)

    patch.setattr(convert_module, "write_shards", write_shards_here)
    patch.setattr(convert_module, "map_on_ray", lambda function, items: [function(item) for item in items])
    patch.setattr(convert_module, "_cpus", lambda: 2)
    patch.setattr(ShardDatasink, "_put", noted)
    return written


def convert_here(dest, sources, **settings):
    """Convert in this process, where no test watches; returns the folder."""
    convert_module.convert(dest, **sources, **settings, on_ray=False)
    return dest


def read_sources(paths):
    parts = []
    for path in paths:
        with open_spectra(path) as spectra:
            parts.append((*spectra.read(0, spectra.num_rows), spectra.params))
    flux, error, params = zip(*parts, strict=True)
    return np.concatenate(flux), np.concatenate(error), pd.concat(params, ignore_index=True)


def read_split(dest, split):
    """Flux, error and the other columns of a split, as the shards have them."""
    tables = [pq.read_table(dest / shard.file) for shard in Manifest.load(dest).shards(split)]
    flux, error = (np.concatenate([column_values(table, name) for table in tables]) for name in ("flux", "error"))
    frames = [table.drop_columns(["flux", "error"]).to_pandas() for table in tables]
    return flux, error, pd.concat(frames, ignore_index=True)


def contents(dest):
    """The bytes of every file of a shard set."""
    return {str(path.relative_to(dest)): path.read_bytes() for path in sorted(dest.rglob("*")) if path.is_file()}


def mtimes(dest):
    return {path: path.stat().st_mtime_ns for path in sorted(dest.rglob("*.parquet"))}


def damage(path, at=0.5):
    """Flip a byte in the middle of a file, where its footer does not show it."""
    content = bytearray(path.read_bytes())
    content[int(len(content) * at)] ^= 0xFF
    path.write_bytes(content)


def one_line(error):
    """What an error says, which must be short."""
    assert "\n" not in str(error)
    assert len(str(error)) < 700
    return str(error)
