"""Passes over batches of positions that someone else's sampler gives.

The sampler is iterated in the trainer, once a batch. For workers, positions are written into the
slot that they will fill, however many they are; the request says how many. Batches larger than a
slot, and empty ones, are made in the trainer.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ...dataset.batch_layout import Columns
from ...dataset.dataset import JASPERSteeringDataset
from ...dataset.slots import Slots
from ...rules.arguments import positions_in
from .given_sampler import GivenSampler
from .local_pass import Pass, fill_given
from .plan import PassPlan
from .worker_pass import WorkerPass
from .worker_pool import WorkerPool

_NO_SLOT: Final = -1


class Given:
    """One iteration over a sampler of batches.

    An error of the sampler, or a position out of range, is raised where its batch is due: others
    may be in flight before it.
    """

    def __init__(self, sampler: GivenSampler, dataset: JASPERSteeringDataset) -> None:
        self.sampler = sampler
        self._batches = iter(sampler)
        self.sizes = sampler.sizes
        self._dataset = dataset
        self._held: NDArray[np.int64] | None = None
        self._error: Exception | None = None
        self.ended = False
        """Whether there are no more batches than those taken."""

    @property
    def rows(self) -> int:
        """The most rows that batches may be expected to have."""
        return self.sampler.rows

    def peek(self) -> NDArray[np.int64] | None:
        """The positions [B] of the next batch, or None at the end."""
        if self._held is None and not self.ended:
            try:
                batch = next(self._batches)
                self._held = positions_in(batch, len(self._dataset), self._dataset.split)
                self.sampler.largest = max(self.sampler.largest, len(self._held))
            except StopIteration:
                self.ended = True
            except Exception as error:  # noqa: BLE001 - raised at its turn
                self.ended, self._error = True, error
        return self._held

    def take(self) -> NDArray[np.int64] | None:
        """Return the next batch and go on, or None at the end."""
        taken, self._held = self.peek(), None
        return taken

    def end(self) -> None:
        """Raise the error of the sampler, once, or `StopIteration`."""
        error, self._error = self._error, None
        raise error or StopIteration


class GivenLocalPass(Pass):
    """Given batches made in this process: in `slots` of `rows` rows, or without any."""

    def __init__(
        self,
        plan: PassPlan,
        given: Given,
        dataset: JASPERSteeringDataset,
        slots: Slots | None,
        rows: int,
        *,
        pin: bool = False,
    ) -> None:
        super().__init__(plan, dataset, pin=pin, given=given.sampler, sizes=given.sizes)
        self._given = given
        self._slots = slots
        self._rows = rows

    def _next(self) -> Columns:
        positions = self._given.take()
        if positions is None:
            self._given.end()
            raise AssertionError
        rows, slots = len(positions), self._slots
        if slots is None or not 0 < rows <= self._rows:
            batch = self._reads.read(positions)
        else:
            batch, target = self._leased(slots, rows)
            fill_given(self._reads, positions, target)
        self.times.samples += rows
        return batch


class GivenWorkerPass(WorkerPass):
    """Given batches that the workers of `pool`, with slots of `rows` rows, make."""

    def __init__(
        self,
        plan: PassPlan,
        given: Given,
        dataset: JASPERSteeringDataset,
        pool: WorkerPool,
        rows: int,
        **options: Any,
    ) -> None:
        self._given = given
        self._most = rows
        self._rows_of: dict[int, int] = {}
        """Batch in flight -> its number of rows."""
        self._here: dict[int, NDArray[np.int64]] = {}
        """Batch that no slot can take -> its positions."""
        super().__init__(plan, dataset, pool, given=given.sampler, sizes=given.sizes, **options)

    def record(self, batch: int) -> tuple[int, int, int, int]:
        """A negative number of a batch says how many positions the slot holds."""
        return ~self._rows_of[batch], 0, 0, 0

    def rows(self, batch: int) -> int:
        """Number of samples in `batch`."""
        return self._rows_of.pop(batch)

    def _request_more(self) -> None:
        pool, given = self._pool, self._given
        room = self._room()
        if room < pool.group and not given.ended:
            return
        for _ in range(room):
            positions = given.peek()
            if positions is None:
                break
            batch, rows = self._requested, len(positions)
            if not 0 < rows <= self._most:
                self._here[batch] = positions
                self._ready[batch] = _NO_SLOT, 0
            else:
                slot = self._free_slot()
                if slot is None:
                    break  # it stays the next one
                pool.slots.extents.bytes_of(slot)[: positions.nbytes] = positions.view(np.uint8)
                self._rows_of[batch] = rows
                pool.request(self, batch, slot)
                self._under_way += 1
            given.take()
            self._requested += 1
        pool.send()

    def _served_all(self) -> bool:
        return self.count >= self._requested and self._given.peek() is None

    def _stop(self) -> None:
        self._given.end()

    def _batch(self, batch: int, slot: int, error_bytes: int) -> Columns:
        try:
            if slot != _NO_SLOT:
                return super()._batch(batch, slot, error_bytes)
            self.count += 1  # until it is made: after an error the next one is due
            positions = self._here.pop(batch)
            columns = self._reads.read(positions)
            self.count -= 1
            self.times.samples += len(positions)
        except BaseException:
            if self._sizes is not None:
                self.progress.count += self._sizes.popleft()
            raise
        return columns
