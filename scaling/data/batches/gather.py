"""How rows get from the host's memory, or from a map larger than it, to the device."""

from __future__ import annotations

import mmap
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy import ndarray
from torch import Tensor

READ_AHEAD_BATCHES = 64
"""Batches that are read ahead after one has waited for the disk."""


class Staging:
    """The way of a batch's rows to the device: on a GPU by two page-locked buffers in turn, reused for every batch.

    The copy runs while the host gathers the next batch into the other buffer; an event says when a buffer is free again.
    """

    def __init__(self, rows: int, pixels: int, device: torch.device) -> None:
        self._device, self._turn = device, 0
        self._pinned = device.type == "cuda"
        if self._pinned:
            self._buffers = [torch.empty(rows, pixels, pin_memory=True) for _ in range(2)]
            self._copied = [torch.cuda.Event() for _ in range(2)]
        self._pixels = pixels

    def gather(self, source: Float[Tensor, "all pixel"], rows: Int64[Tensor, " row"]) -> Float[Tensor, "row pixel"]:
        """Some rows of a tensor in the host's memory, on the device."""
        if not self._pinned:
            return source.index_select(0, rows)
        buffer = self._free_buffer(len(rows))
        torch.index_select(source, 0, rows, out=buffer)
        return self._send(buffer)

    def join(self, pieces: list[ndarray]) -> Float[Tensor, "row pixel"]:
        """Pieces one after the other, on the device."""
        rows = sum(map(len, pieces))
        buffer = self._free_buffer(rows) if self._pinned else torch.empty(rows, self._pixels)
        if pieces:
            np.concatenate(pieces, out=buffer.numpy())
        return self._send(buffer) if self._pinned else buffer

    def _free_buffer(self, rows: int) -> Tensor:
        self._turn = 1 - self._turn
        self._copied[self._turn].synchronize()
        return self._buffers[self._turn][:rows]

    def _send(self, buffer: Tensor) -> Tensor:
        there = buffer.to(self._device, non_blocking=True)
        self._copied[self._turn].record(torch.cuda.current_stream(self._device))
        return there


class ReadAhead:
    """Asks the kernel for the next batch's rows at once, where batches wait for the disk: a map larger than memory.

    A gather that meets a page which is not in memory waits for it, and only then for the next one; asked for together,
    the disk serves many at a time. Where all pages are in memory asking would cost as much as the gather.
    """

    def __init__(self, arrays: list[ndarray]) -> None:
        self._row_bytes = arrays[0].strides[0]
        self._maps = [_memory_map(array) for array in arrays]
        self._left = 0

    @property
    def useful(self) -> bool:
        """Whether one of the last gathers waited for the disk."""
        return self._left > 0

    @contextmanager
    def watch(self) -> Iterator[None]:
        """See whether what is done meanwhile waits for the disk."""
        before = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
        yield
        waited = resource.getrusage(resource.RUSAGE_SELF).ru_majflt > before
        self._left = READ_AHEAD_BATCHES if waited else max(self._left - 1, 0)

    def ask_for(self, rows: Int64[ndarray, " row"]) -> None:
        """Have the kernel read some rows, without waiting for them."""
        for start in (rows * self._row_bytes).tolist():
            page = start // mmap.PAGESIZE * mmap.PAGESIZE
            for pages in self._maps:
                pages.madvise(mmap.MADV_WILLNEED, page, start - page + self._row_bytes)


def _memory_map(array: ndarray) -> mmap.mmap:
    """The map that an array lies in, from its first byte on."""
    owner: Any = array
    while not isinstance(owner, mmap.mmap):
        owner = owner.obj if isinstance(owner, memoryview) else owner.base
    return owner
