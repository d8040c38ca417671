"""Reusable batch buffers: a batch is gathered straight into a slot and served as views of it.

All slots lie in one piece of memory, private or shared with workers; the free list stays in the
process that owns them. A batch leases its slot: the storages that its tensors view hold the lease,
and when the last of them dies, wherever that is, the slot is free again. Freed slots are handed out
most recently freed first, so that a few of them stay in the processor's cache.

A consumer that keeps batches makes the memory grow by further extents; the pages of a grown slot go
back to the system when it is freed.
"""

from __future__ import annotations

import mmap
import os
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from .schema import COLUMNS
from .shared import Descriptor, anonymous_memory

_ALIGNMENT: Final = 64
_HUGE: Final = 2 << 20


class Layout:
    """Where the columns of a batch of up to `rows` rows lie in a slot of `nbytes` bytes."""

    def __init__(self, rows: int, embedding_dim: int, n_neg: int) -> None:
        sizes = {"B": rows, "D": embedding_dim, "N": n_neg}
        offset = 0
        self._columns: list[tuple[str, bool, tuple[int, ...], tuple[int, ...], int]] = []
        for column in COLUMNS.values():
            shape = [sizes[letter] for letter in column.shape]
            strides = torch.empty(shape, device="meta").stride()
            floating = column.dtype == torch.float32
            start = offset // column.dtype.itemsize
            self._columns.append((column.name, floating, tuple(shape[1:]), strides, start))
            offset += torch.Size(shape).numel() * column.dtype.itemsize
            offset += -offset % _ALIGNMENT
        self.nbytes = offset + -offset % mmap.PAGESIZE

    def views(self, buffer: Any, rows: int) -> dict[str, torch.Tensor]:
        """Fresh tensors over `buffer` (of `nbytes`), whose storages hold it."""
        floats = torch.frombuffer(buffer, dtype=torch.float32)
        integers = torch.frombuffer(buffer, dtype=torch.int64)
        return {
            name: (floats if floating else integers).as_strided((rows, *tail), strides, start)
            for name, floating, tail, strides, start in self._columns
        }


class Extents:
    """Memory of equal slots in mapped extents, each as large as all before it together.

    The owner and its workers map the same extents of one anonymous file, each on first use;
    without `shared` it is the owner's private memory.
    """

    def __init__(self, slot_bytes: int, first: int, shared: Descriptor | None) -> None:
        self._slot_bytes = slot_bytes
        self._first = first
        self._shared = shared
        self._maps: list[mmap.mmap] = []

    def locate(self, slot: int) -> tuple[mmap.mmap, int]:
        """The mapping in which `slot` lies, and its offset there in bytes."""
        begin, size, extent = 0, self._first, 0
        while slot >= begin + size:
            begin, size, extent = begin + size, begin + size, extent + 1
        while len(self._maps) <= extent:
            self._map_next()
        return self._maps[extent], (slot - begin) * self._slot_bytes

    def _map_next(self) -> None:
        slots = self._first << max(0, len(self._maps) - 1)
        length = slots * self._slot_bytes
        if self._shared is None:
            mapping = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        else:
            offset = sum(len(m) for m in self._maps)
            if os.fstat(self._shared.fd).st_size < offset + length:
                os.truncate(self._shared.fd, offset + length)
            mapping = mmap.mmap(self._shared.fd, length, offset=offset)
        if length >= _HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
            mapping.madvise(mmap.MADV_HUGEPAGE)
        self._maps.append(mapping)


class _Lease(np.ndarray[Any, Any]):
    """The bytes of one slot; frees it when it dies."""

    owner: Slots
    slot: int

    def __del__(self) -> None:
        self.owner.give_back(self.slot)


class Slots:
    """Hands out slots and takes them back, from any thread.

    `fallbacks` counts how often none of the `count` regular slots was free and a grown one was
    taken instead.
    """

    def __init__(self, layout: Layout, count: int, *, shared: bool) -> None:
        self.layout = layout
        self.count = count
        self.fallbacks = 0
        self.memory = anonymous_memory("jasper-slots", 0) if shared else None
        self._extents = Extents(layout.nbytes, count, self.memory)
        # Appending to and popping from a list is atomic: a lease may end in any thread, or while
        # this one is in the middle of taking a slot (garbage collection), where a lock would hang.
        self._free = list(range(count))[::-1]
        self._free_grown: list[int] = []
        self._total = count

    def take(self) -> int | None:
        """A free regular slot, if there is one."""
        try:
            return self._free.pop()
        except IndexError:
            return None

    def take_grown(self) -> int:
        """A slot beyond the regular ones, fresh memory."""
        self.fallbacks += 1
        try:
            return self._free_grown.pop()
        except IndexError:
            slot, self._total = self._total, self._total + 1
            return slot

    def give_back(self, slot: int) -> None:
        """Make `slot` free again."""
        if slot < self.count:
            self._free.append(slot)
            return
        mapping, offset = self._extents.locate(slot)
        advice = mmap.MADV_DONTNEED if self.memory is None else mmap.MADV_REMOVE
        mapping.madvise(advice, offset, self.layout.nbytes)
        self._free_grown.append(slot)

    def lease(self, slot: int, rows: int) -> dict[str, torch.Tensor]:
        """The first `rows` rows of `slot` as a batch that gives it back when it dies."""
        mapping, offset = self._extents.locate(slot)
        lease = _Lease(self.layout.nbytes, np.uint8, mapping, offset)
        lease.owner, lease.slot = self, slot
        return self.layout.views(lease, rows)

    def bytes_of(self, slot: int) -> NDArray[np.uint8]:
        """The bytes of `slot`, while the caller holds it."""
        return slot_bytes(self._extents, self.layout, slot)


def slot_bytes(extents: Extents, layout: Layout, slot: int) -> NDArray[np.uint8]:
    """The bytes of `slot` in this process."""
    mapping, offset = extents.locate(slot)
    return np.frombuffer(mapping, np.uint8, layout.nbytes, offset)
