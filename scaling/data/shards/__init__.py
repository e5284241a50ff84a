"""Parquet shards: HDF5 to shards on Ray Data, the manifest, the study order, verification."""
