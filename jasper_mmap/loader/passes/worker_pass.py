"""The pass over batches that a pool of workers fills."""

from __future__ import annotations

import pickle

from ...dataset.batch_layout import Columns
from ...dataset.dataset import JASPERSteeringDataset
from ...errors import UsageError, WorkerError
from .local_pass import Pass
from .order import PassPlan
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
    ) -> None:
        super().__init__(plan, dataset, pin=pin)
        self._last = last
        self._pool = pool
        self._timeout_s = timeout_s or None
        self._requested = 0
        self._under_way = 0
        self._ready: dict[int, tuple[int, int]] = {}
        self._dropped = False
        with pool.lock:
            self._request_more()  # workers begin before the first batch is asked for

    def arrived(self, batch: int, slot: int, error_bytes: int) -> None:
        """A reply: `slot` holds `batch`, or a pickled exception."""
        self._under_way -= 1
        if self._dropped:
            self._pool.slots.give_back(slot)
        else:
            self._ready[batch] = (slot, error_bytes)

    def _drop(self) -> None:
        with self._pool.lock:
            self._dropped = True
            for slot, _ in self._ready.values():
                self._pool.slots.give_back(slot)
            self._ready.clear()
            if self._last:
                self._pool.close()

    def _request_more(self) -> None:
        pool = self._pool
        outstanding = self._under_way + len(self._ready)
        askable = min(pool.outstanding_max - outstanding, len(self.plan) - self._requested)
        if askable < min(pool.group, len(self.plan) - self._requested):
            return
        for _ in range(askable):
            slot = pool.slots.take()
            if slot is None:
                if self._under_way + len(self._ready) >= pool.num_workers:
                    break  # enough in flight until a slot is free again
                slot = pool.slots.take_grown()
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

    def _next_of_pool(self) -> Columns:
        if self.count >= len(self.plan):
            if self._last:
                self._pool.close()
            raise StopIteration
        self._request_more()
        while (batch := self._next_ready()) is None:
            if not self._pool.receive(self._timeout_s):
                raise WorkerError(
                    f"DataLoader timed out after {self._timeout_s:g} seconds: no worker made a"
                    " batch in time. Raise the timeout, or find out what delays the workers."
                )
        slot, error_bytes = self._ready.pop(batch)
        slots = self._pool.slots
        if error_bytes:
            data = slots.extents.bytes_of(slot)[:error_bytes].tobytes()
            slots.give_back(slot)
            self.count += 1  # the next call continues after it
            pickle.loads(data).reraise()  # noqa: S301  # our own worker wrote it
        return slots.lease(slot, self.plan.rows(batch))

    def _next_ready(self) -> int | None:
        if self._pool.in_order:
            return self.count if self.count in self._ready else None
        return next(iter(self._ready), None)

    def __del__(self) -> None:
        for slot, _ in self._ready.values():
            self._pool.slots.give_back(slot)
