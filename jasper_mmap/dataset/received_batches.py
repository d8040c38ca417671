"""The trainer's side of batches that cross from a worker of torch's DataLoader in its slots.

`worker_slots` describes the protocol. Memory that this process has mapped is known by the random
token of its worker's slots, until the worker is gone; the leases of batches keep it mapped.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import weakref
from collections.abc import Sequence
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any, Final, NamedTuple

from ..errors import WorkerError
from ..files.shared_memory import Descriptor, this_process
from ..files.torch_modes import plain_tensors
from .batch_layout import Columns, Layout
from .slots import Extents

MOST_SLOTS: Final = 1 << 20
"""Limit of the slots that have marks; marks that are not used take no memory."""
_SIZE: Final = 2 * MOST_SLOTS


class SharedSlots:
    """The memory of a worker's slots, in the worker or in the trainer: marks, then the slots.

    `held[slot]` is 1 while tensors of the worker itself use the slot: only the worker writes it.
    `returned[slot]` becomes 1 when the trainer's last tensor over it has died: then it is the
    worker's again, which sets it to 0.
    """

    SIZE: Final = _SIZE
    """Bytes of the marks, with which the memory begins."""

    def __init__(self, memory: Descriptor, layout: Layout, count: int) -> None:
        self.layout = layout
        self.count = count
        self.extents = Extents(layout, count, memory, begin=_SIZE)
        self._marks = mmap.mmap(memory.fd, _SIZE)
        marks = memoryview(self._marks)
        self.held, self.returned = marks[:MOST_SLOTS], marks[MOST_SLOTS:]

    def next_returned(self, slot: int, end: int) -> int:
        """The first slot from `slot` to `end` that was returned, or a negative number."""
        return self._marks.find(b"\1", MOST_SLOTS + slot, MOST_SLOTS + end) - MOST_SLOTS


class Introduction(NamedTuple):
    """What a worker sends with the first batch in new slots."""

    memory: Any
    """A `DupFd`."""
    layout: Layout
    regular: int
    """How many slots do not give their memory back."""
    pid: int
    """The worker's, to learn of its end."""


class _Sender:
    """A worker's slots in this process; gives slots back to the worker."""

    def __init__(self, token: bytes, introduction: Introduction) -> None:
        memory = Descriptor(introduction.memory.detach())
        self.slots = SharedSlots(memory, introduction.layout, introduction.regular)
        self._process = this_process()
        children = multiprocessing.active_children()
        worker = next((child for child in children if child.pid == introduction.pid), None)
        self._worker: weakref.ref[BaseProcess] | None = None
        if worker is not None:
            # torch drops its workers when an iteration, or a loader with persistent ones, ends.
            self._worker = weakref.ref(worker, partial(_forget, token))

    def give_back(self, slot: int, this_process: Any = this_process) -> None:
        """The last tensor over `slot` has died, in any thread or at the interpreter's exit.

        Leases that a forked process has inherited give nothing back.
        """
        if this_process() != self._process:
            return
        slots = self.slots
        if slot >= slots.count and not slots.held[slot]:
            slots.extents.release_pages(slot)  # the worker may be idle for long
        slots.returned[slot] = 1

    @property
    def ended(self) -> bool:
        """Whether its worker has ended, as far as this process knows."""
        if self._worker is None:  # not a child of this process
            return False
        worker = self._worker()
        try:
            return worker is None or bool(wait([worker.sentinel], timeout=0))
        except ValueError:  # closed
            return True


_known: dict[bytes, _Sender] = {}

# Those of its parent: a forked process maps only what its copies of batches use.
os.register_at_fork(after_in_child=_known.clear)


def _forget(token: bytes, _: object = None, known: dict[bytes, _Sender] = _known) -> None:
    known.pop(token, None)


@plain_tensors
def receive(
    token: bytes,
    slot: int,
    rows: int,
    entries: Sequence[tuple[Any, str | None, Any]] | None = None,
    introduction: Introduction | None = None,
    gone: bytes | None = None,
) -> Columns:
    """Unpickle a batch of `rows` rows in `slot`: fresh tensors that hold a lease on it.

    `entries`, if they are not the nine columns: the key of each, and its column or else its value.
    `gone` is the token of other slots, of which no batch will come any more.
    """
    if gone is not None:
        _forget(gone)
    if introduction is not None:
        _introduce(token, introduction)
    sender = _known.get(token)
    if sender is None:
        raise WorkerError(
            "a batch came from a DataLoader worker that this process does not know: the worker has"
            " ended, or another process took its first batch. Take the batches of a DataLoader in"
            " the process that iterates over it."
        )
    columns = sender.slots.extents.lease(sender, slot, rows)
    if entries is None:
        return columns
    return {key: value if name is None else columns[name] for key, name, value in entries}


def _introduce(token: bytes, introduction: Introduction) -> None:
    try:
        sender = _Sender(token, introduction)
    except (OSError, EOFError) as error:
        raise WorkerError(
            f"cannot take the first batch of a DataLoader worker: {error}. The worker has ended, or"
            " no file descriptor is left (raise the limit with ulimit -n)."
        ) from None
    for known, other in list(_known.items()):
        if other.ended:
            _forget(known)
    _known[token] = sender
