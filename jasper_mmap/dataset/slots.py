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
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from ..files.mapping import HUGE_PAGE
from ..files.shared_memory import Descriptor, anonymous_memory, this_process
from .batch_layout import Columns, Layout, Target

_TARGETS_KEPT: Final = 64


class Owner(Protocol):
    """Whoever a slot goes back to when its lease ends."""

    def give_back(self, slot: int) -> None:
        """Take `slot` back; called in any thread, also at the interpreter's exit."""


class Extents:
    """Memory of `count` slots and more, in extents each as large as all before it together.

    The owner and its workers map the same extents of one anonymous file, each on first use;
    without `shared` it is private memory of the owner. The first `begin` bytes of the file, whole
    pages, hold something else.
    """

    def __init__(
        self, layout: Layout, count: int, shared: Descriptor | None, *, begin: int = 0
    ) -> None:
        self.shared = shared
        self._layout = layout
        self._first = count
        self._begin = begin
        self._release = mmap.MADV_DONTNEED if shared is None else mmap.MADV_REMOVE
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
                if len(self._targets) >= _TARGETS_KEPT:  # batches of many sizes
                    self._targets.clear()
                self._targets[slot, rows] = target
        return target

    def lease(self, owner: Owner, slot: int, rows: int) -> Columns:
        """Return `slot` as a batch of `rows` rows; when the last tensor dies, `owner` gets the slot
        back."""
        return self._layout.batch(self.hold(owner, slot), rows)

    def hold(self, owner: Owner, slot: int) -> NDArray[np.uint8]:
        """The bytes of `slot` in this process; when the last array or tensor over them dies,
        `owner` gets the slot back."""
        mapping, offset = self.locate(slot)
        lease = _Lease(self._layout.nbytes, np.uint8, mapping, offset)
        lease.owner, lease.slot = owner, slot
        return lease

    def release_pages(self, slot: int) -> None:
        """Return the memory of `slot` to the system; it is zeros afterwards."""
        mapping, offset = self.locate(slot)
        with contextlib.suppress(OSError):  # not every file system can free pages of a file
            mapping.madvise(self._release, offset, self._layout.nbytes)

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
        if self.shared is None:
            mapping = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        else:
            # Writing a byte after the extent makes the file long enough; truncating it to that
            # length could shorten it, if a later extent came first.
            offset = self._begin + begin * self._layout.nbytes + extent * mmap.PAGESIZE
            os.pwrite(self.shared.fd, b"\0", offset + length)
            mapping = mmap.mmap(self.shared.fd, length, offset=offset)
        if length >= HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # a kernel without huge pages uses small ones
                mapping.madvise(mmap.MADV_HUGEPAGE)
        return self._maps.setdefault(extent, mapping)


class _Lease(np.ndarray[Any, Any]):
    """The bytes of one slot, which goes back to its owner when this dies."""

    owner: Owner
    slot: int

    def __del__(self) -> None:
        self.owner.give_back(self.slot)


class Slots:
    """Hands out slots and takes them back, from any thread.

    `fallbacks` counts how often none of the `count` regular slots was free and another one was
    allocated or reused instead.
    """

    def __init__(
        self, layout: Layout, count: int, *, shared: bool, extents: Extents | None = None
    ) -> None:
        self.layout = layout
        self.count = count
        self.fallbacks = 0
        self.process = this_process()
        """The process that the slots belong to."""
        if extents is None:
            extents = Extents(
                layout, count, anonymous_memory("jasper-slots", 0) if shared else None
            )
        self.extents = extents
        self.memory = extents.shared
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
        if self.memory is not None and this_process() != self.process:
            return
        if slot < self.count:
            self._free.append(slot)
            return
        self.extents.release_pages(slot)
        self._free_grown.append(slot)

    def lease(self, slot: int, rows: int) -> Columns:
        """Return `slot` as a batch of `rows` rows, which frees the slot when it dies."""
        return self.extents.lease(self, slot, rows)
