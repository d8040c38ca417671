"""Reusable batch buffers: a batch is gathered directly into a slot and served from there.

All slots are in one piece of memory, private or shared with workers; the free list is in the
process that owns them. A batch leases its slot: the storages of its tensors hold the lease, and
when the last of them dies, in any thread, the slot is free again. The slot freed last is reused
first, so that a few slots stay in the processor's cache.

If a consumer keeps batches, the memory grows by further extents; the pages of such a slot are
returned to the system when it is freed.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files.mapping import HUGE_PAGE
from ..files.shared_memory import Descriptor, anonymous_memory, this_process
from .batch_layout import Columns, Layout, Target


class Extents:
    """Memory of `count` slots and more, in extents each as large as all before it together.

    The owner and its workers map the same extents of one anonymous file, each on first use;
    without `shared` it is private memory of the owner.
    """

    def __init__(self, layout: Layout, count: int, shared: Descriptor | None) -> None:
        self._layout = layout
        self._first = count
        self._shared = shared
        self._maps: dict[int, mmap.mmap] = {}
        self._targets: dict[tuple[int, int], Target] = {}

    def bytes_of(self, slot: int) -> NDArray[np.uint8]:
        """The bytes of `slot` in this process."""
        mapping, offset = self.locate(slot)
        return np.frombuffer(mapping, np.uint8, self._layout.nbytes, offset)

    def target(self, slot: int, rows: int) -> Target:
        """Where to write a batch of `rows` rows into `slot`.

        These tensors stay internal, so they are reused, unlike those of a lease.
        """
        target = self._targets.get((slot, rows))
        if target is None:
            target = self._layout.target(self.bytes_of(slot), rows)
            if slot < self._first:
                self._targets[slot, rows] = target
        return target

    def locate(self, slot: int) -> tuple[mmap.mmap, int]:
        """The mapping that contains `slot`, and its offset there in bytes."""
        extent = (slot // self._first).bit_length()
        begin = self._first << extent - 1 if extent else 0
        mapping = self._maps.get(extent)
        if mapping is None:
            mapping = self._map(extent, begin, max(begin, self._first))
        return mapping, (slot - begin) * self._layout.nbytes

    def _map(self, extent: int, begin: int, count: int) -> mmap.mmap:
        """Map slots `begin` to `begin + count`; threads and processes may do so at once."""
        length = count * self._layout.nbytes
        if self._shared is None:
            mapping = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        else:
            # Writing a byte after the extent makes the file long enough; truncating it to that
            # length could shorten it, if a later extent came first.
            offset = begin * self._layout.nbytes + extent * mmap.PAGESIZE
            os.pwrite(self._shared.fd, b"\0", offset + length)
            mapping = mmap.mmap(self._shared.fd, length, offset=offset)
        if length >= HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # a kernel without huge pages uses small ones
                mapping.madvise(mmap.MADV_HUGEPAGE)
        return self._maps.setdefault(extent, mapping)


class _Lease(np.ndarray[Any, Any]):
    """The bytes of one slot, which is freed when this dies."""

    owner: Slots
    slot: int

    def __del__(self) -> None:
        self.owner.give_back(self.slot)


class Slots:
    """Hands out slots and takes them back, from any thread.

    `fallbacks` counts how often none of the `count` regular slots was free and another one was
    allocated or reused instead.
    """

    def __init__(self, layout: Layout, count: int, *, shared: bool) -> None:
        self.layout = layout
        self.count = count
        self.fallbacks = 0
        self._owner = this_process()
        self.memory = anonymous_memory("jasper-slots", 0) if shared else None
        self.extents = Extents(layout, count, self.memory)
        # Appending to and popping from a list is atomic: a lease may end in any thread, or while
        # this one is in the middle of taking a slot (garbage collection), where a lock would hang.
        self._free = list(range(count))[::-1]
        self._free_grown: list[int] = []
        self._unused = itertools.count(count)

    def take(self) -> int | None:
        """Take a free regular slot, if there is one."""
        try:
            return self._free.pop()
        except IndexError:
            return None

    def take_grown(self) -> int:
        """Take a slot beyond the regular ones, in fresh memory."""
        self.fallbacks += 1
        try:
            return self._free_grown.pop()
        except IndexError:
            return next(self._unused)

    def give_back(self, slot: int) -> None:
        """Make `slot` free again.

        Leases that a forked process has inherited free nothing.
        """
        if self.memory is not None and this_process() != self._owner:
            return
        if slot < self.count:
            self._free.append(slot)
            return
        mapping, offset = self.extents.locate(slot)
        advice = mmap.MADV_DONTNEED if self.memory is None else mmap.MADV_REMOVE
        with contextlib.suppress(OSError):  # not every file system can free pages of a file
            mapping.madvise(advice, offset, self.layout.nbytes)
        self._free_grown.append(slot)

    def lease(self, slot: int, rows: int) -> Columns:
        """Return `slot` as a batch of `rows` rows, which frees the slot when it dies."""
        mapping, offset = self.extents.locate(slot)
        lease = _Lease(self.layout.nbytes, np.uint8, mapping, offset)
        lease.owner, lease.slot = self, slot
        return self.layout.batch(lease, rows)
