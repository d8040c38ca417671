"""The trainer's side of worker processes.

`worker_process` describes the protocol. The trainer owns the slots: each request names one, which
is free again when the batch dies.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import select
import signal
import threading
import weakref
from typing import Any, Final, Protocol

from ...dataset.batch_layout import Layout
from ...dataset.dataset import JASPERSteeringDataset
from ...dataset.slots import Slots
from ...errors import UsageError, WorkerError
from ...files.shared_memory import Descriptor, this_process
from .plan import PassPlan
from .worker_death import Child, end_with
from .worker_process import MANY, REPLY, REQUEST, Job, WorkerInit, handled, held_back, work

_JOIN_S: Final = 5.0
_NAME: Final = "jasper-worker"
UNGUARDED: Final = 87
"""Exit status of a worker whose trainer is a script without a main guard."""


class Client(Protocol):
    """A pass that asks the pool for batches."""

    finished: bool

    def record(self, batch: int) -> tuple[int, int, int, int]:
        """What a request tells a worker of `batch`; see `worker_process`."""

    def arrived(self, batch: int, slot: int, error_bytes: int) -> None:
        """Take a reply: `slot` holds `batch`, or a pickled exception of `error_bytes`."""


class WorkerPool:
    """Worker processes of one loader, and the slots they fill.

    Passes in several threads may use it: the holder of `lock` reads the replies for all of them.
    """

    def __init__(
        self,
        dataset: JASPERSteeringDataset,
        plan: PassPlan | None,
        layout: Layout,
        *,
        num_workers: int,
        prefetch: int,
        base_seed: int,
        context: Any = None,
        init: WorkerInit | None = None,
        in_order: bool = True,
        ahead: int = 0,
    ) -> None:
        _leave_if_unguarded()
        self._owner = os.getpid()
        self._reader = dataset.reader
        self.lock = threading.Lock()
        self.num_workers = num_workers
        self.outstanding_max = num_workers * prefetch
        # One more than can be in flight: the batch that the trainer uses.
        self.slots = Slots(layout, self.outstanding_max + 1, shared=True)
        self.passes: weakref.WeakSet[Client] = weakref.WeakSet()
        self.waits = 0
        """How often no reply was there when a pass asked for one."""
        self._asked: dict[int, tuple[weakref.ref[Client], int, int, int]] = {}
        self._ticket = 0
        self.in_order = in_order
        self._load = [0] * num_workers
        self._unsent = [b""] * num_workers
        together = min(max(1, prefetch // 2), MANY)
        # Requests are sent in groups as large as those of replies.
        self.group = num_workers * together if together > 1 else 1
        pipes = [tuple(map(Descriptor, os.pipe())) for _ in range(num_workers)]
        requests, self._requests = zip(*pipes, strict=True)
        self._replies, reply_write = map(Descriptor, os.pipe())
        for end in (*requests, self._replies):
            os.set_blocking(end.fd, False)
        assert self.slots.memory is not None
        job = Job(
            dataset=dataset,
            plan=plan,
            layout=layout,
            slots=self.slots.count,
            memory=self.slots.memory,
            requests=requests,
            replies=reply_write,
            foreign=(*self._requests, self._replies),
            base_seed=base_seed,
            num_workers=num_workers,
            init=init,
            together=together,
            step=num_workers if in_order else 1,
            ahead=ahead,
            trainer=os.getpid(),
            signals=handled(),
        )
        start = context or multiprocessing.get_context()
        method = start.get_start_method()
        if method != "fork":
            job.foreign = ()
        self._processes: list[Child] = []
        # Before the first is started, so that a failure ends the workers started so far.
        self.close = end_with(self, self._processes, self._requests, self._replies)
        with held_back(job.signals, method):
            for worker in range(num_workers):
                process = start.Process(
                    target=work, args=(worker, job), name=f"{_NAME}-{worker}", daemon=True
                )
                process.start()
                self._processes.append(Child(process))
        for end in (*requests, reply_write):
            end.close()
        self._poll = select.poll()
        self._poll.register(self._replies.fd, select.POLLIN)
        for process in self._processes:
            self._poll.register(process.sentinel, select.POLLIN)

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [process.pid for process in self._processes]

    @property
    def closed(self) -> bool:
        """Whether its workers have been ended."""
        return not self.close.still_active()

    @property
    def is_own(self) -> bool:
        """Whether the workers belong to this process; a forked one has only a copy of the pool."""
        return self._owner == this_process()

    @property
    def idle(self) -> bool:
        """Whether no pass needs it."""
        return all(client.finished for client in tuple(self.passes))

    def request(self, owner: Client, batch: int, slot: int) -> None:
        """Request a worker to fill `slot` with `batch` of the owner; sent by `send`.

        In order, the workers take turns, so that each knows its next batches. Otherwise the one
        with the fewest requests gets it, so that a slow worker does not collect them all.
        """
        worker = batch % self.num_workers
        if not self.in_order:
            worker = self._load.index(min(self._load))
        self._load[worker] += 1
        self._ticket += 1
        self._asked[self._ticket] = (weakref.ref(owner), worker, batch, slot)
        self._unsent[worker] += REQUEST.pack(self._ticket, slot, *owner.record(batch))

    def send(self) -> None:
        """Send the requests to the workers."""
        try:
            for worker, records in enumerate(self._unsent):
                self._unsent[worker] = b""
                for begin in range(0, len(records), MANY * REQUEST.size):
                    piece = records[begin : begin + MANY * REQUEST.size]
                    os.write(self._requests[worker].fd, piece)
        except BrokenPipeError:
            # With a fork server, it may be reported as alive for a moment.
            self._processes[worker].join(_JOIN_S)
            self._report_dead()
            raise

    def receive(self, timeout_s: float | None) -> bool:
        """Wait for replies and pass each to its pass; return False if none came in time.

        Raises `WorkerError` naming a worker that died.
        """
        replies = self._read_replies()
        if not replies:
            self.waits += 1
            if not self._poll.poll(None if timeout_s is None else timeout_s * 1000):
                return False
            replies = self._read_replies()
        if not replies:  # a worker's end made the poll return
            self._report_dead()
        for ticket, size in REPLY.iter_unpack(replies):
            reference, worker, batch, slot = self._asked.pop(ticket)
            self._load[worker] -= 1
            owner = reference()
            if owner is None:  # the consumer stopped early
                self.slots.give_back(slot)
            else:
                owner.arrived(batch, slot, size)
        return True

    def _read_replies(self) -> bytes:
        with contextlib.suppress(BlockingIOError):
            return os.read(self._replies.fd, MANY * REPLY.size)
        return b""

    def _report_dead(self) -> None:
        for worker, process in enumerate(self._processes):
            if not process.is_alive():
                self.close()
                if process.exitcode == UNGUARDED:
                    raise UsageError(
                        "the script starts this loader again in each of its worker processes, which"
                        " import the script: put its code under if __name__ == '__main__':."
                    )
                who = f"DataLoader worker {worker} (pid {process.pid})"
                if process.exitcode == -signal.SIGBUS:
                    raise WorkerError(f"{who} was ended by SIGBUS: {self._reader.why_sigbus()}")
                raise WorkerError(
                    f"{who} exited unexpectedly with exit code {process.exitcode}; a negative code"
                    " is the signal that killed it (-9 often means that the system ran out of"
                    " memory)."
                )


def _leave_if_unguarded() -> None:
    """Exit if this is a starting worker whose import of the user's script has come here; the
    trainer reports it once."""
    process = multiprocessing.current_process()
    if process.name.startswith(_NAME) and getattr(process, "_inheriting", False):
        os._exit(UNGUARDED)
