"""Spectra, from file to batch.

`SpectraDatasource` and `ShardDatasink` are for Ray Data. They import Ray, so they are loaded lazily, on first access:
the settings of `scaling.sweep.cluster.ray_cluster` must be in the environment before Ray is imported.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scaling.data.shards.datasink import ShardDatasink
    from scaling.data.shards.datasource import SpectraDatasource

__all__ = ["ShardDatasink", "SpectraDatasource"]

_MODULES = {"SpectraDatasource": "datasource", "ShardDatasink": "datasink"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"scaling.data.shards.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
