"""Iterating over a plan in this process, and making the batches of a plan in any process."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from ...dataset.batch_layout import Columns, Target
from ...dataset.dataset import JASPERSteeringDataset
from ...dataset.gather import Lookup
from ...dataset.slots import Slots
from ...dataset.split_reader import SplitReader
from ...errors import UsageError
from ...files.memory_pages import read_ahead
from ...files.torch_modes import plain_tensors
from ...rules.schema import Batch
from ...timing.step_times import StepTimes
from .given_sampler import GivenSampler
from .plan import PassPlan

_BLOCKS: Final = 2
"""Blocks kept: that of the current batch and that of the batch being prefetched, or one for each of
two interleaved passes."""


@dataclass(frozen=True)
class _Block:
    """Batches of a plan that were looked up together, under `state`."""

    plan: PassPlan
    batches: range
    state: Any
    lookup: Lookup


class PlanReader:
    """Makes every `step`-th batch of plans; looks up many batches at once.

    With `ahead`, it asks the kernel to prefetch the rows of the batch that many batches later.
    """

    def __init__(self, dataset: JASPERSteeringDataset, *, step: int = 1, ahead: int = 0) -> None:
        self._reader = dataset.reader
        self._placement = dataset.reader.served.placement
        self._step = step
        self._ahead = ahead
        self._size = 1  # of the next block: the first batch must not wait for others
        self._blocks: deque[_Block] = deque()

    def fill(self, plan: PassPlan, batch: int, target: Target) -> None:
        """Make batch number `batch` of `plan`."""
        coming = batch + self._ahead
        if self._ahead and coming < len(plan):
            block = self._block(plan, coming)
            for table, rows in block.lookup.rows_read(block.batches.index(coming)):
                read_ahead(table, rows.numpy())
        block = self._block(plan, batch)
        block.lookup.fill(block.batches.index(batch), target)

    def new(self, plan: PassPlan, batch: int) -> Columns:
        """Make batch number `batch` of `plan` in new columns on the device of the tables."""
        columns = self._reader.new_batch(plan.rows(batch))
        self.fill(plan, batch, Target(columns))
        return columns

    def _block(self, plan: PassPlan, batch: int) -> _Block:
        words = self._reader.words.read()
        # On a device, one stream may not read yet what another has looked up.
        state = (words, self._placement.runtime.stream(self._placement.device))
        for block in self._blocks:
            if batch in block.batches and block.state == state and block.plan == plan:
                return block
        # A partial last batch has another size and is looked up alone.
        whole = plan.full
        batches = range(batch, max(whole, batch + 1), self._step)[: self._size]
        self._size = min(2 * self._size, plan.ahead)
        if len(self._blocks) == _BLOCKS:
            self._reader.spare(self._blocks.popleft().lookup)
        lookup = self._reader.look_up(plan.positions(batches), plan.rows(batch), words)
        self._blocks.append(_Block(plan, batches, state, lookup))
        return self._blocks[-1]


def fill_given(reader: SplitReader, positions: NDArray[np.int64], target: Target) -> None:
    """Make the batch of `positions` [B], B > 0, that are known to be in range."""
    columns = dict(target.columns)
    lookup = reader.look_up(positions, len(positions), reader.words.read(), columns)
    lookup.fill_wide(0, target)
    reader.spare(lookup)


@dataclass
class Progress:
    """How far a pass is: `count` batches of `plan` were returned, or positions of a sampler that
    was given."""

    plan: PassPlan
    epoch_calls: int
    """The dataset's `epoch_calls` at the latest batch, or when the pass began."""
    count: int = 0


class Pass(Iterator[Batch]):
    """One iteration over a loader, for one thread at a time; `count` batches were returned so far.

    `given` is the sampler whose batches, of these `sizes`, it returns, if not those of `plan`.
    """

    def __init__(
        self,
        plan: PassPlan,
        dataset: JASPERSteeringDataset,
        *,
        pin: bool = False,
        given: GivenSampler | None = None,
        sizes: deque[int] | None = None,
        workers: int = 0,
    ) -> None:
        self.plan = plan
        self.count = 0
        self.times = StepTimes(dataset.split, plan.epoch, workers)
        """What was measured; the subclasses count samples and fallbacks."""
        self.progress = Progress(plan, dataset.epoch_calls)
        self._dataset = dataset
        self._reads = dataset.reader
        self._pin = pin
        self._sized: Sized = plan if given is None else given
        # Where the sampler does not resume by itself, what it gave is counted.
        self._sizes = sizes if given is not None and given.plan is not None else None
        self._words = dataset.reader.words
        self._last_of_plan = len(plan) if given is None else 0
        # A token that admits one thread: pop and append of a list are atomic.
        self._turn: list[None] = [None]
        self._over: Callable[[], None] | None = None
        self._another: weakref.WeakMethod[Callable[[], Pass]] | None = None
        self._successor: Pass | None = None

    def follow_epochs(self, another: Callable[[], Pass]) -> None:
        """Serve what `another`, a method, begins, if the epoch moves before the first batch.

        Some frameworks make an iterator before they call `set_epoch`, and iterate it then.
        """
        self._another = weakref.WeakMethod(another)  # not a circle: the loader may hold this pass

    def _moved(self) -> bool:
        """Begin another pass, if the epoch has moved; call before the first batch only."""
        if self._another is None or self._dataset.current_epoch == self.plan.epoch:
            return False
        another = self._another()
        if another is None:
            return False
        self._drop()
        self._successor = another()
        return True

    def _drop(self) -> None:
        """Release what was made ahead."""

    def when_over(self, call: Callable[[], None]) -> None:
        """Call `call` once, when the last batch is returned, or now if there is none."""
        self._over = call
        self._end()

    def _end(self) -> None:
        if self._over is not None and self.progress.count >= len(self.plan):
            call, self._over = self._over, None
            call()

    def __len__(self) -> int:
        return len(self._sized if self._successor is None else self._successor)

    @plain_tensors
    def __next__(self) -> Batch:
        if self._successor is not None:
            return next(self._successor)
        requested = perf_counter_ns()
        if self._reads.closed:
            _ = self._reads.served  # raises, even if batches were prefetched
        try:
            self._turn.pop()
        except IndexError:
            raise UsageError(
                "another thread is taking a batch from this iterator; use it in one thread at a"
                " time, or make one for each thread with iter(loader)."
            ) from None
        try:
            if not self.count and self._moved():
                return next(cast(Pass, self._successor))
            batch = self._next()
            self.count += 1
            progress, sizes = self.progress, self._sizes
            progress.count = self.count if sizes is None else progress.count + sizes.popleft()
            progress.epoch_calls = self._dataset.epoch_calls
            if self._over is not None:
                self._end()
        except StopIteration:
            self.times.ended(requested)
            self.report()
            if self._over is not None:  # a sampler that was given may give less than the plan
                call, self._over = self._over, None
                call()
            raise
        finally:
            self._turn.append(None)
        if self._pin:
            # torch keeps its pinned memory until a non-blocking copy has read it.
            batch = {name: column.pin_memory() for name, column in batch.items()}
        self.times.returned(requested, self._words.generation)
        if self.count == self._last_of_plan:  # not every loop asks once more
            self.report()
        return cast(Batch, batch)

    def report(self) -> None:
        """Log what was measured, if that was not done."""
        self.times.report(self._words.generation)

    def _next(self) -> Columns:
        raise NotImplementedError

    def _leased(self, slots: Slots, rows: int) -> tuple[Columns, Target]:
        """A batch of `rows` rows in a slot, a grown one if none is free, and where to write it."""
        slot = slots.take()
        if slot is None:
            slot = slots.take_grown()
            self.times.fallbacks += 1
        return slots.lease(slot, rows), slots.extents.target(slot, rows)


class LocalPass(Pass):
    """Batches made in this process: in `slots`, or without any on the dataset's device."""

    def __init__(
        self,
        plan: PassPlan,
        dataset: JASPERSteeringDataset,
        slots: Slots | None,
        *,
        ahead: int = 0,
        pin: bool = False,
    ) -> None:
        super().__init__(plan, dataset, pin=pin)
        self._reader = PlanReader(dataset, ahead=ahead)
        self._slots = slots

    def _next(self) -> Columns:
        if self.count >= len(self.plan):
            raise StopIteration
        slots = self._slots
        rows = self.plan.rows(self.count)
        if slots is None:
            batch = self._reader.new(self.plan, self.count)
        else:
            batch, target = self._leased(slots, rows)
            self._reader.fill(self.plan, self.count, target)
        self.times.samples += rows
        return batch
