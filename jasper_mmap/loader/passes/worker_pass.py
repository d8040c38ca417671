"""The pass over batches that a pool of workers fills."""

from __future__ import annotations

import pickle
from collections import deque

from ...dataset.batch_layout import Columns
from ...dataset.dataset import JASPERSteeringDataset
from ...errors import UsageError, WorkerError
from .given_sampler import GivenSampler
from .local_pass import Pass
from .plan import PassPlan
from .worker_pool import WorkerPool


class WorkerPass(Pass):
    """One iteration over batches that the workers of `pool` make."""

    def __init__(
        self,
        plan: PassPlan,
        dataset: JASPERSteeringDataset,
        pool: WorkerPool,
        *,
        timeout_s: float = 0.0,
        last: bool = False,
        pin: bool = False,
        given: GivenSampler | None = None,
        sizes: deque[int] | None = None,
    ) -> None:
        workers = pool.num_workers
        super().__init__(plan, dataset, pin=pin, given=given, sizes=sizes, workers=workers)
        self.times.counts_ready = True
        self._last = last
        self._pool = pool
        self._timeout_s = timeout_s or None
        self._requested = 0
        self._under_way = 0
        self._ready: dict[int, tuple[int, int]] = {}
        self._dropped = False
        self.finished = False
        """Whether it has nothing more to ask of its workers."""
        pool.passes.add(self)
        with pool.lock:
            self._request_more()  # workers begin before the first batch is asked for

    def record(self, batch: int) -> tuple[int, int, int, int]:
        """What a request tells a worker of `batch`: its number, and which pass of the plan."""
        plan = self.plan
        return batch, plan.epoch, plan.pass_number, plan.start

    def rows(self, batch: int) -> int:
        """Number of samples in `batch`."""
        return self.plan.rows(batch)

    def arrived(self, batch: int, slot: int, error_bytes: int) -> None:
        """A reply: `slot` holds `batch`, or a pickled exception."""
        self._under_way -= 1
        if self._dropped:
            self._pool.slots.give_back(slot)
        else:
            self._ready[batch] = (slot, error_bytes)

    def _drop(self) -> None:
        with self._pool.lock:
            self._dropped = self.finished = True
            for slot, _ in self._ready.values():
                self._pool.slots.give_back(slot)
            self._ready.clear()
            if self._last:
                self._pool.close()

    def _room(self) -> int:
        """How many more batches may be in flight."""
        return self._pool.outstanding_max - self._under_way - len(self._ready)

    def _free_slot(self) -> int | None:
        """Take a slot, or None if enough is in flight until one is free again."""
        pool = self._pool
        slot = pool.slots.take()
        if slot is None and self._under_way + len(self._ready) < pool.num_workers:
            slot = pool.slots.take_grown()
            self.times.fallbacks += 1
        return slot

    def _request_more(self) -> None:
        pool, left = self._pool, len(self.plan) - self._requested
        askable = min(self._room(), left)
        if askable < min(pool.group, left):
            return
        for _ in range(askable):
            slot = self._free_slot()
            if slot is None:
                break
            pool.request(self, self._requested, slot)
            self._requested += 1
            self._under_way += 1
        pool.send()

    def _next(self) -> Columns:
        if not self._pool.is_own:
            raise UsageError(
                "this iterator belongs to another process and its workers; make one here with"
                " iter(loader), which starts workers of this process."
            )
        with self._pool.lock:
            return self._next_of_pool()

    def _served_all(self) -> bool:
        """Whether every batch was returned."""
        return self.count >= len(self.plan)

    def _stop(self) -> None:
        """Raise what ends the iteration."""
        raise StopIteration

    def _next_of_pool(self) -> Columns:
        if self._served_all():
            self.finished = True
            if self._last:
                self._pool.close()
            self._stop()
        self._request_more()
        waits = self._pool.waits
        while (batch := self._next_ready()) is None:
            if not self._pool.receive(self._timeout_s):
                raise WorkerError(
                    f"DataLoader timed out after {self._timeout_s:g} seconds: no worker made a"
                    " batch in time. Raise the timeout, or find out what delays the workers."
                )
        slot, error_bytes = self._ready.pop(batch)
        columns = self._batch(batch, slot, error_bytes)
        if self._pool.waits == waits and slot >= 0:  # else it was made here
            self.times.ready += 1
        return columns

    def _batch(self, batch: int, slot: int, error_bytes: int) -> Columns:
        """The batch that arrived in `slot`, or the exception of its worker."""
        slots = self._pool.slots
        rows = self.rows(batch)
        if error_bytes:
            data = slots.extents.bytes_of(slot)[:error_bytes].tobytes()
            slots.give_back(slot)
            self.count += 1  # the next call continues after it
            pickle.loads(data).reraise()  # noqa: S301  # our own worker wrote it
        self.times.samples += rows
        return slots.lease(slot, rows)

    def _next_ready(self) -> int | None:
        if self._pool.in_order:
            return self.count if self.count in self._ready else None
        return next(iter(self._ready), None)

    def __del__(self) -> None:
        for slot, _ in self._ready.values():
            if slot >= 0:  # not of a batch that is made here
                self._pool.slots.give_back(slot)
