"""Iterating a plan in this process; and what any process does to make one batch of a plan."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from .dataset import JASPERSteeringDataset
from .reading import Drawn
from .sampler import Plan
from .slots import Slots
from .warm import read_ahead

Batch = dict[str, torch.Tensor]


class PlanReader:
    """Reads the batches of plans; computes positions and variants for many batches at once.

    With `ahead`, the kernel is told to fetch the rows of the batch that many batches later.
    """

    def __init__(self, dataset: JASPERSteeringDataset, ahead: int = 0) -> None:
        self._dataset = dataset
        self._ahead = ahead
        self._plan: Plan | None = None
        self._block = -1
        self._positions: NDArray[np.int64] = np.empty(0, np.int64)
        self._drawn = Drawn(-1, self._positions)

    def read(self, plan: Plan, batch: int, out: Batch | None) -> Batch:
        """Batch number `batch` of `plan`, in columns of its own or in those of `out`."""
        coming = batch + self._ahead
        if self._ahead and coming < len(plan):
            positions = plan.positions(coming, coming + 1)
            drawn = self._dataset.reader.draw(positions, plan.epoch)
            for table, rows in self._dataset.reader.wanted_rows(positions, drawn):
                read_ahead(table, rows.numpy())
        block, within = divmod(batch, plan.ahead)
        if block != self._block or (plan is not self._plan and plan != self._plan):
            first = block * plan.ahead
            self._positions = plan.positions(first, min(first + plan.ahead, len(plan)))
            self._drawn = self._dataset.reader.draw(self._positions, plan.epoch)
            self._plan, self._block = plan, block
        begin = within * plan.batch_size
        here = slice(begin, begin + plan.batch_size)
        drawn = Drawn(self._drawn.epoch, self._drawn.variants[here])
        return self._dataset.reader.read(self._positions[here], out, drawn)


class Pass(Iterator[Batch]):
    """One iteration over a loader; `count` batches of `plan` were handed out so far."""

    def __init__(self, plan: Plan, *, pin: bool = False) -> None:
        self.plan = plan
        self.count = 0
        self._pin = pin

    def __len__(self) -> int:
        return len(self.plan)

    def __next__(self) -> Batch:
        batch = self._next()
        self.count += 1
        if self._pin:
            # torch's pinned memory, which it keeps until a non-blocking copy has read it.
            return {name: column.pin_memory() for name, column in batch.items()}
        return batch

    def _next(self) -> Batch:
        raise NotImplementedError


class LocalPass(Pass):
    """Batches made in this process: in `slots`, or where the dataset lies if there are none."""

    def __init__(
        self,
        plan: Plan,
        dataset: JASPERSteeringDataset,
        slots: Slots | None,
        *,
        ahead: int = 0,
        pin: bool = False,
    ) -> None:
        super().__init__(plan, pin=pin)
        self._reader = PlanReader(dataset, ahead)
        self._slots = slots

    def _next(self) -> Batch:
        if self.count >= len(self.plan):
            raise StopIteration
        if self._slots is None:
            return self._reader.read(self.plan, self.count, None)
        slot = self._slots.take()
        if slot is None:
            slot = self._slots.take_grown()
        batch = self._slots.lease(slot, self.plan.rows(self.count))
        return self._reader.read(self.plan, self.count, batch)


class ForeignPass(Pass):
    """Batches of torch's own iterator, for what this package's do not cover."""

    def __init__(self, plan: Plan, batches: Iterator[Batch]) -> None:
        super().__init__(plan)
        self._batches = batches

    def _next(self) -> Batch:
        return next(self._batches)
