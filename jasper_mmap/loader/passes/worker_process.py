"""A worker process: fills slots with batches, on request.

Each worker reads its requests (which batch of which pass, into which slot) from its own pipe; all
reply through one pipe. Both are records of a few integers, at most `MANY` at a time: less than
PIPE_BUF, which the kernel writes atomically. Positions, tensors and descriptors are never sent; an
exception is written into the slot of its batch. So are the positions of a batch that is not of a
plan: its request has ~rows in place of the batch's number.

A worker ends on request, or when the trainer ends. It does not run the trainer's signal handlers,
since schedulers signal whole process groups: with an inherited handler (save a checkpoint, exit)
each worker would run it too; with the default restored, a worker would die and end the training.
So a worker ignores those of `ENDING` that the trainer handles when it starts. Until then they are
blocked, as far as the start method passes the blocked signals on: fork and spawn do, a fork server
does not.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import select
import signal
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch._utils import ExceptionWrapper
from torch.utils.data import _utils

from ...dataset.batch_layout import Layout
from ...dataset.dataset import JASPERSteeringDataset
from ...dataset.slots import Extents
from ...files.shared_memory import Descriptor, process_descriptor
from .local_pass import PlanReader, fill_given
from .plan import PassPlan

ENDING: Final = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGXCPU,
)
"""Signals that end a process by default, and that a trainer may handle instead. Not SIGCHLD: if it
is ignored, `subprocess` reports 0 for every failure."""
_FAULTS: Final = {
    signal.SIGABRT,
    signal.SIGBUS,
    signal.SIGFPE,
    signal.SIGILL,
    signal.SIGSEGV,
    signal.SIGTRAP,
}

REQUEST: Final = struct.Struct("<6q")  # ticket, slot, batch, epoch, pass number, start
REPLY: Final = struct.Struct("<2q")  # ticket, bytes of a pickled exception in the slot
STOP: Final = REQUEST.pack(-1, 0, 0, 0, 0, 0)
MANY: Final = 64
_PARENT_CHECK_S: Final = 5.0
_TOGETHER_S: Final = 0.001

WorkerInit = Callable[[int], None]


@dataclass
class Job:
    """Everything that a worker needs at its start."""

    dataset: JASPERSteeringDataset
    plan: PassPlan | None
    """The plan of any pass: requests have what differs. None if no batch is of a plan."""
    layout: Layout
    slots: int
    memory: Descriptor
    requests: tuple[Descriptor, ...]
    """One for each worker."""
    replies: Descriptor
    foreign: tuple[Descriptor, ...]
    """The trainer's ends of the pipes, which a forked worker must close."""
    base_seed: int
    num_workers: int
    init: WorkerInit | None
    together: int
    """Number of replies that may be sent together."""
    step: int
    ahead: int
    """Both for `PlanReader`."""
    trainer: int
    """Its process id, which is not the parent's of a worker that a fork server started."""
    signals: tuple[int, ...]
    """Those that the trainer handles."""


def work(worker: int, job: Job) -> None:
    """Run as worker number `worker` until the trainer ends it; the target of the process."""
    leave_to_trainer(job.signals)
    with contextlib.suppress(BrokenPipeError):  # the trainer died
        _serve(worker, job)


def _serve(worker: int, job: Job) -> None:
    for descriptor in job.foreign:
        descriptor.close()
    requests = job.requests[worker].fd
    parent, trainer = os.getppid(), process_descriptor(job.trainer)
    failure = _set_up(worker, job)
    filler = _Filler(job)
    waiting = select.poll()
    waiting.register(requests, select.POLLIN)
    if trainer is not None:
        waiting.register(trainer.fd, select.POLLIN)
    replies = _Replies(job)
    while True:
        try:
            records = os.read(requests, MANY * REQUEST.size)
        except BlockingIOError:
            replies.send()
            ready = dict(waiting.poll(_PARENT_CHECK_S * 1000))
            if trainer is not None and trainer.fd in ready:
                return
            if trainer is None and not ready and os.getppid() != parent:
                return
            continue
        if records.endswith(STOP) or not records:
            return
        for ticket, slot, batch, *which in REQUEST.iter_unpack(records):
            size = 0
            try:
                if failure is not None:
                    failure.reraise()  # type: ignore[no-untyped-call]
                filler.fill(slot, batch, which)
            except Exception:  # noqa: BLE001  # the trainer raises it
                size = _put_exception(failure or _failure(worker), filler.extents.bytes_of(slot))
            replies.add(ticket, size)


class _Replies:
    """Collects replies to the trainer. Waking it takes as long as a small batch, so while there is
    more to do, replies are delayed shortly and sent together."""

    def __init__(self, job: Job) -> None:
        self._fd = job.replies.fd
        self._full = job.together * REPLY.size
        self._waiting = b""
        self._since = 0.0

    def add(self, ticket: int, error_bytes: int) -> None:
        now = time.monotonic()
        if not self._waiting:
            self._since = now
        self._waiting += REPLY.pack(ticket, error_bytes)
        if len(self._waiting) >= self._full or now - self._since > _TOGETHER_S:
            self.send()

    def send(self) -> None:
        if self._waiting:
            os.write(self._fd, self._waiting)
            self._waiting = b""


class _Filler:
    """Writes batches into slots."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self.extents = Extents(job.layout, job.slots, job.memory)
        self._reader = PlanReader(job.dataset, step=job.step, ahead=job.ahead)
        self._plan = job.plan
        self._which: list[int] = []

    def fill(self, slot: int, batch: int, which: list[int]) -> None:
        """Write `batch` of the pass `which` (epoch, pass number, start) into `slot`, or the batch
        whose positions it holds."""
        if batch < 0:
            rows = ~batch
            positions = self.extents.bytes_of(slot)[: 8 * rows].view(np.int64).copy()
            fill_given(self._job.dataset.reader, positions, self.extents.target(slot, rows))
            return
        if which != self._which:
            epoch, pass_number, start = self._which = which
            assert self._job.plan is not None, "a pool of given batches has no plan"
            self._plan = replace(self._job.plan, epoch=epoch, pass_number=pass_number, start=start)
        assert self._plan is not None
        self._reader.fill(self._plan, batch, self.extents.target(slot, self._plan.rows(batch)))


def _set_up(worker: int, job: Job) -> ExceptionWrapper | None:
    """Set up like a worker of torch: one thread, own seeds, `get_worker_info`, the user's init."""
    try:
        torch.set_num_threads(1)
        seed = job.base_seed + worker
        random.seed(seed)
        torch.manual_seed(seed)
        np.random.seed(seed % (1 << 32))  # the global generator, which users' code may use
        _utils.worker._worker_info = _utils.worker.WorkerInfo(
            id=worker, num_workers=job.num_workers, seed=seed, dataset=job.dataset
        )
        if job.init is not None:
            job.init(worker)
    except Exception:  # noqa: BLE001
        return _failure(worker)
    return None


def _failure(worker: int) -> ExceptionWrapper:
    """The current exception, with its traceback as text, in the form of torch's workers."""
    return ExceptionWrapper(  # type: ignore[no-untyped-call]
        where=f"in DataLoader worker process {worker}"
    )


def _put_exception(wrapped: ExceptionWrapper, target: NDArray[np.uint8]) -> int:
    data = pickle.dumps(wrapped)
    if len(data) > len(target):
        wrapped.exc_msg = wrapped.exc_msg[-len(target) // 2 :]
        data = pickle.dumps(wrapped)
    target[: len(data)] = np.frombuffer(data, np.uint8)
    return len(data)


def handled() -> tuple[int, ...]:
    """The signals of `ENDING` that this process handles or ignores."""
    # getsignal returns None for a handler that is not Python's.
    return tuple(n for n in ENDING if signal.getsignal(n) != signal.SIG_DFL)


@contextmanager
def held_back(numbers: tuple[int, ...], start_method: str) -> Iterator[None]:
    """Block these signals in this thread, and so in processes that the block starts."""
    if start_method == "forkserver":
        # A server started here would pass the blocked signals on to all its later processes.
        yield
        return
    if start_method == "spawn":
        resource_tracker.ensure_running()  # its start unblocks some of them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_to_trainer(numbers: tuple[int, ...]) -> None:
    """In a worker's main thread: ignore these signals, and drop handlers inherited by fork."""
    signal.set_wakeup_fd(-1)  # an inherited one would write to an event loop of the trainer
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN if number in numbers else signal.SIG_DFL)
    for number in signal.valid_signals() - {*ENDING} - _FAULTS:
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
