"""Parquet shards: HDF5 to shards on Ray Data, the manifest, the study order, verification.

`SpectraDatasource` and `ShardDatasink` import Ray; `scaling.data` loads them lazily.
"""

from scaling.data.shards.manifest import Manifest, Shard, Source

__all__ = ["Manifest", "Shard", "Source"]
