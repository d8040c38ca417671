"""Slots of a worker of torch's DataLoader: a batch crosses to the trainer as a slot's number.

torch sends each tensor of a batch as a shared-memory file of its own, through a descriptor, which
takes longer than making the batch. So the default collate returns a `SlotBatch` in a worker, and
the worker's result queue pickles that as the token of the worker's slots and the number of one.

1. The worker reads a batch into a slot (`BatchSlots`) and marks it as held by its own tensors.
2. The first batch that crosses takes the descriptor of the slots' memory along. The trainer maps it
   once (`received_batches`).
3. The trainer gets a plain dict of fresh tensors over the slot. When the last of them dies, it
   marks the slot as returned. No system call is needed for that, and nothing is lost if a batch is
   never looked at: unpickling it is enough.
4. When the worker takes its next slot, it takes back those that were returned and are not held by
   its own tensors any more. If none is free, because the consumer keeps batches, the memory grows;
   the pages of such a slot are returned to the system by whoever drops it last.

A slot crosses once. Whatever else is pickled (a second dict of the slot, a tensor that a collate
has put in place of a column, a batch for another queue or file) travels as its data.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from multiprocessing import current_process, queues, reduction
from typing import Any, Final

from ..files.shared_memory import memory_file, this_process
from .batch_layout import Columns, Layout, Target
from .control import in_worker
from .received_batches import MOST_SLOTS, Introduction, SharedSlots
from .slot_batch import Filled, Place, UnusedBatch, place
from .slots import Slots

_COUNT: Final = 4
"""Regular slots in the trainer: the batch being made, and those that a loop and its wrappers
hold."""
_WORKER_COUNT: Final = range(5, 33)
_WORKER_BYTES: Final = 256 << 20
"""A worker does not know how many of its batches are prefetched. It has as many regular slots as
fit into these bytes, within `_WORKER_COUNT`; those that are not needed take no memory."""
_LARGEST: Final = 256 << 20
"""Larger batches are not made in slots of the trainer, which keep their memory."""

_PLACES_KEPT: Final = 256

_gone: list[bytes] = []
"""Tokens of slots that have died; the trainer must learn of them."""


class WorkerSlots(Slots):
    """The slots of a worker. A slot is free when neither it nor the trainer has tensors over it."""

    _introduced = False

    def __init__(self, layout: Layout, count: int) -> None:
        memory = memory_file("jasper-slots", SharedSlots.SIZE)
        self._shared = SharedSlots(memory, layout, count)
        super().__init__(layout, count, shared=True, extents=self._shared.extents)
        self.token = os.urandom(16)
        self._queues = _result_queues()
        # The slots that have crossed. Taking one out of a dict is atomic.
        self._sent: dict[int, None] = {}
        self._places: dict[tuple[int, int], dict[str, Place]] = {}
        self._end = 0  # beyond every slot that was used

    def take(self) -> int | None:
        """Take a free regular slot, if there is one."""
        self._take_back()
        return super().take()

    def _take_back(self) -> None:
        slot, shared = -1, self._shared
        while (slot := shared.next_returned(slot + 1, self._end)) >= 0:
            if not shared.held[slot] and self._sent.pop(slot, slot) is None:
                shared.returned[slot] = 0
                super().give_back(slot)

    def give_back(self, slot: int) -> None:
        """The worker's own tensors over `slot` have died."""
        if this_process() != self.process:
            return
        sent = slot in self._sent  # before another thread may take it back
        self._shared.held[slot] = 0
        if not sent:
            super().give_back(slot)

    def lease(self, slot: int, rows: int) -> Columns:
        """Return `slot` as a batch of `rows` rows, whose pickle is the number of the slot."""
        self._shared.held[slot] = 1
        self._end = max(self._end, slot + 1)
        lease = self.extents.hold(self, slot)
        return UnusedBatch.of(Filled(self, slot, rows, lease))

    def columns(self, lease: Any, rows: int) -> Columns:
        """Tensors of `rows` rows over the slot that `lease` holds."""
        return self.layout.batch(lease, rows)

    def places(self, slot: int, rows: int) -> dict[str, Place]:
        """Where the columns of a batch of `rows` rows in `slot` were, before anyone had them."""
        places = self._places.get((slot, rows))
        if places is None:
            if len(self._places) >= _PLACES_KEPT:  # batches of many sizes
                self._places.clear()
            columns = self.extents.target(slot, rows).columns
            places = {name: place(column) for name, column in columns.items()}
            self._places[slot, rows] = places
        return places

    def may_send(self) -> bool:
        """Whether this thread may pickle the number of a slot."""
        # A batch that users put into a queue of their own may be taken by a process that cannot
        # map it.
        thread = threading.current_thread()
        return self.process == this_process() and any(
            getattr(queue, "_thread", None) is thread for queue in self._queues
        )

    def send(self, slot: int) -> tuple[Introduction | None, bytes | None]:
        """Mark `slot` as the trainer's; return what else the trainer must know: of these slots, if
        it does not know them, and the token of slots that have died."""
        self._sent[slot] = None
        gone = None
        with suppress(IndexError):
            gone = _gone.pop()
        if self._introduced:
            return None, gone
        self._introduced = True
        memory = self._shared.extents.shared
        assert memory is not None
        duplicate = reduction.DupFd(memory.fd)
        return Introduction(duplicate, self.layout, self.count, os.getpid()), gone

    def __del__(self, gone: list[bytes] = _gone) -> None:
        # Nothing of it can be sent any more, and what was sent is in the queue already.
        if self._introduced:
            gone.append(self.token)


def _result_queues() -> list[queues.Queue[Any]]:
    """The queues that torch has given to this worker: one for its tasks, one for its results."""
    given = getattr(current_process(), "_args", ())
    return [argument for argument in given if isinstance(argument, queues.Queue)]


class BatchSlots:
    """The slots into which the batches of one dataset are read, made when they are needed.

    In a worker of torch's DataLoader they are `WorkerSlots`, or private ones where the system has
    no memfd: then batches travel as torch sends them.
    """

    def __init__(self, embedding_dim: int, n_neg: int) -> None:
        self._sizes = (embedding_dim, n_neg)
        self.fallbacks = 0
        """How often no regular slot was free."""
        self._slots: Slots | None = None
        self._asked_before = False

    def take(self, rows: int) -> tuple[Columns, Target] | None:
        """Return a batch of `rows` rows in a slot, and where to write it; None if the batch should
        be in memory of its own."""
        slots = self._slots
        if slots is not None and slots.process != this_process():
            slots = None  # those of the process that forked this one
        if slots is None or slots.layout.rows < rows:
            slots = self._larger(slots, rows)
            if slots is None:
                return None
        slot = slots.take()
        if slot is None:
            self.fallbacks += 1
            slot = slots.take_grown()
            if slot >= MOST_SLOTS:
                return None
        return slots.lease(slot, rows), slots.extents.target(slot, rows)

    def drop(self) -> None:
        """Release the slots, each when the last tensor over it dies."""
        self._slots = None

    def _larger(self, slots: Slots | None, rows: int) -> Slots | None:
        """Make slots for `rows` rows, in place of `slots`."""
        if in_worker() and _result_queues():
            # Without memfd, or a descriptor left, batches travel as torch sends them.
            with suppress(OSError):
                self._slots = made = self._worker_slots(slots, rows)
                return made
        layout = Layout(rows, *self._sizes)
        # A single large batch, perhaps a whole split, must not keep its memory.
        asked_before, self._asked_before = self._asked_before, not self._asked_before
        if not asked_before or layout.nbytes > _LARGEST:
            return None
        self._slots = Slots(layout, _COUNT, shared=False)
        return self._slots

    def _worker_slots(self, slots: Slots | None, rows: int) -> WorkerSlots:
        if isinstance(slots, WorkerSlots):
            rows = max(rows, 2 * slots.layout.rows)
        layout = Layout(rows, *self._sizes)
        fitting = _WORKER_BYTES // layout.nbytes
        count = min(max(_WORKER_COUNT.start, fitting), _WORKER_COUNT.stop - 1)
        return WorkerSlots(layout, count)

    def __reduce__(self) -> tuple[type[BatchSlots], tuple[int, int]]:
        return BatchSlots, self._sizes
