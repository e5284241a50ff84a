"""Transfer of rows from host memory, or from a map larger than memory, to the device."""

from __future__ import annotations

import mmap
import resource
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int64
from numpy import ndarray
from torch import Tensor

READ_AHEAD_BATCHES = 64
"""Batches to read ahead after a gather has waited for the disk."""
Parts = Iterable[tuple[Float[Tensor, "all channel pixel"], Int64[Tensor, " row"]]]
"""Row indices into several tensors in host memory."""


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy small host tensors to the device through pinned memory; any other copy waits for all queued GPU work."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values


class Staging:
    """Transfers a batch's rows to the device; on a GPU through two pinned buffers, used alternately.

    The copy of one batch overlaps with gathering the next; an event marks when a buffer is free again.
    """

    def __init__(self, rows: int, channels: int, pixels: int, device: torch.device) -> None:
        self._device, self._turn, self._shape = device, 0, (channels, pixels)
        self._pinned = device.type == "cuda"
        if self._pinned:
            self._buffers = [torch.empty(rows, channels, pixels, pin_memory=True) for _ in range(2)]
            self._copied = [torch.cuda.Event() for _ in range(2)]

    def gather(self, parts: Parts, total: int) -> Float[Tensor, "row channel pixel"]:
        """Concatenate the rows of all parts, ``total`` in all, on the device."""
        if self._pinned:
            self._turn = 1 - self._turn
            self._copied[self._turn].synchronize()
        buffer = self._buffers[self._turn][:total] if self._pinned else torch.empty(total, *self._shape)
        start = 0
        for source, rows in parts:
            torch.index_select(source, 0, rows, out=buffer[start : start + len(rows)])
            start += len(rows)
        if not self._pinned:
            return buffer
        there = buffer.to(self._device, non_blocking=True)
        self._copied[self._turn].record(torch.cuda.current_stream(self._device))
        return there


class ReadAhead:
    """Prefetches the next batches' rows into the page cache if gathers wait for the disk (map larger than memory).

    A gather waits for one missing page at a time; requested together, the disk serves many at once. Where all pages are
    in memory, prefetching would cost as much as the gather.
    """

    def __init__(self, spectra: ndarray) -> None:
        self._row_bytes = spectra.strides[0]
        owner: Any = spectra
        while not isinstance(owner, mmap.mmap):
            owner = owner.obj if isinstance(owner, memoryview) else owner.base
        self._map, self._left = owner, 0

    @property
    def useful(self) -> bool:
        """Whether one of the last gathers waited for the disk."""
        return self._left > 0

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Detect whether the block waits for the disk."""
        before = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
        yield
        waited = resource.getrusage(resource.RUSAGE_SELF).ru_majflt > before
        self._left = READ_AHEAD_BATCHES if waited else max(self._left - 1, 0)

    def ask_for(self, rows: Int64[ndarray, " row"]) -> None:
        """Request rows from the kernel without waiting for them."""
        for start in (rows * self._row_bytes).tolist():
            page = start // mmap.PAGESIZE * mmap.PAGESIZE
            self._map.madvise(mmap.MADV_WILLNEED, page, start - page + self._row_bytes)
