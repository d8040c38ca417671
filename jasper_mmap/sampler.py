"""The order of an epoch: any part of it without the rest, shared by ranks, resumable.

A `Plan` is the order of one pass as a pure function; the samplers say which pass comes next. They
are subclasses of the torch ones they stand for, since tools that rewrap a loader look at types.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import BatchSampler, DistributedSampler, RandomSampler, SequentialSampler

from .dataset import JASPERSteeringDataset
from .errors import JasperError, UsageError
from .permutation import permute

_BLOCK = 1 << 14
"""Positions computed at a time: with cold caches a call costs as much as thousands of them."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which positions each batch of one pass holds, for one of `world` ranks.

    The global order of the split (shuffled by (seed, epoch, pass), or as it stands) is cut into
    runs of world x batch_size; rank r takes the r-th batch_size of each, so the ranks together
    consume what a single process would, batch by batch. Of the tail each rank takes an equal part:
    as torch's DistributedSampler does, the order is continued from its beginning where it does not
    divide evenly, or with `drop_last` cut. `start` is how much of the order earlier, interrupted
    iterations of this pass consumed (of all ranks together).
    """

    n: int
    split: str
    shuffle: bool
    seed: int
    epoch: int
    pass_number: int
    start: int
    batch_size: int
    drop_last: bool
    rank: int
    world: int

    @property
    def samples(self) -> int:
        """How many samples this rank is given, before a partial last batch is dropped."""
        rest = self.n - self.start
        return rest // self.world if self.drop_last else -(-rest // self.world)

    def __len__(self) -> int:
        whole = self.samples // self.batch_size
        return whole if self.drop_last else -(-self.samples // self.batch_size)

    def rows(self, batch: int) -> int:
        """How many samples `batch` holds."""
        return min(self.batch_size, self.samples - batch * self.batch_size)

    def positions(self, batches: range) -> NDArray[np.int64]:
        """Positions in the split of the samples of these batches (ascending), one after another."""
        begins = np.arange(batches.start, batches.stop, batches.step) * self.batch_size
        own = (begins[:, None] + np.arange(self.batch_size)).ravel()
        own = own[: np.searchsorted(own, self.samples)]
        if self.world > 1:
            # Of each run of world * size in the order this rank takes the rank-th part; the last
            # run is shorter.
            whole, tail = divmod(self.samples, self.batch_size)
            batch = own // self.batch_size
            size = np.where(batch < whole, self.batch_size, tail)
            own += batch * ((self.world - 1) * self.batch_size) + self.rank * size
        own += self.start
        if len(own) and own[-1] >= self.n:
            own %= self.n
        if not self.shuffle or not len(own):
            return own
        return permute(own, self.n, "order", self.seed, self.split, self.epoch, self.pass_number)

    @property
    def ahead(self) -> int:
        """How many batches are worth computing at once."""
        return max(1, _BLOCK // self.batch_size)

    def consumed(self, batches: int) -> int:
        """How much of the global order is consumed after `batches` batches, `start` included."""
        if batches >= len(self):
            return self.n
        return self.start + batches * self.world * self.batch_size


class PassCounter:
    """Knows which pass of which epoch comes next, and where an interrupted one goes on."""

    def __init__(
        self,
        dataset: JASPERSteeringDataset,
        batch_size: int,
        drop_last: bool,
        shuffle: bool,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._dataset = dataset
        self._batch_size = batch_size
        self._drop_last = drop_last
        self._shuffle = shuffle
        self._rank = rank
        self._world = world
        self._seen_calls = dataset.epoch_calls
        self._pass = 0
        self._start = 0
        self._resumed_epoch: int | None = None

    def peek(self) -> Plan:
        """The plan of the next iteration."""
        if self._seen_calls != self._dataset.epoch_calls:
            self._seen_calls = self._dataset.epoch_calls
            # A training loop calls set_epoch after load_state_dict: that must not lose the place.
            if self._resumed_epoch != self._dataset.current_epoch:
                self._pass, self._start, self._resumed_epoch = 0, 0, None
        return Plan(
            n=len(self._dataset),
            split=self._dataset.split,
            shuffle=self._shuffle,
            seed=self._dataset.seed,
            epoch=self._dataset.current_epoch,
            pass_number=self._pass,
            start=self._start,
            batch_size=self._batch_size,
            drop_last=self._drop_last,
            rank=self._rank,
            world=self._world,
        )

    def begin(self) -> Plan:
        """The plan of the iteration that starts now; counts it."""
        plan = self.peek()
        self._pass, self._start, self._resumed_epoch = self._pass + 1, 0, None
        return plan

    def state_dict(self, plan: Plan | None, batches: int) -> dict[str, Any]:
        """Where training stands: `batches` into `plan`, or before the next pass if it is None."""
        following = self.peek()
        if plan is None or plan.epoch != following.epoch or batches >= len(plan):
            plan, batches = following, 0
        return {
            "split": plan.split,
            "pairs": plan.n,
            "seed": plan.seed,
            "epoch": plan.epoch,
            "pass": plan.pass_number,
            "consumed": plan.consumed(batches) if batches else plan.start,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken, also with another world or batch size."""
        dataset = self._dataset
        own = {"split": dataset.split, "pairs": len(dataset), "seed": dataset.seed}
        try:
            numbers = [int(state[key]) for key in ("epoch", "pass", "consumed")]
            differs = {k: (state[k], v) for k, v in own.items() if state[k] != v}
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"not the state of a loader: {error!r}") from None
        if differs:
            told = "; ".join(f"{k} was {old!r}, is {new!r}" for k, (old, new) in differs.items())
            raise JasperError(f"the state is of another loader: {told}. Create a loader like it.")
        if min(numbers) < 0 or numbers[-1] > len(dataset):
            raise UsageError(
                f"not the state of a loader: epoch, pass and consumed are {numbers}, of"
                f" {len(dataset)} pairs"
            )
        epoch, self._pass, self._start = numbers
        dataset.set_epoch(epoch)
        self._seen_calls = dataset.epoch_calls
        self._resumed_epoch = epoch


class ShuffledSampler(RandomSampler):
    """Positions of a shuffled pass. Iterating it looks at the next pass without counting it."""

    def __init__(self, dataset: JASPERSteeringDataset, passes: PassCounter) -> None:
        super().__init__(dataset)
        self.passes = passes

    def __iter__(self) -> Iterator[int]:
        return _positions(self.passes)

    def __len__(self) -> int:
        return self.passes.peek().n


class OrderedSampler(SequentialSampler):
    """Positions in the order of the split."""

    def __init__(self, dataset: JASPERSteeringDataset, passes: PassCounter) -> None:
        super().__init__(dataset)
        self.passes = passes

    def __iter__(self) -> Iterator[int]:
        return _positions(self.passes)


class RankSampler(DistributedSampler[Any]):
    """The positions of one rank, batch by batch; see `Plan`."""

    def __init__(
        self,
        dataset: JASPERSteeringDataset,
        passes: PassCounter,
        *,
        rank: int,
        world: int,
        shuffle: bool,
        drop_last: bool,
    ) -> None:
        super().__init__(
            dataset,
            num_replicas=world,
            rank=rank,
            shuffle=shuffle,
            seed=dataset.seed,
            drop_last=drop_last,
        )
        self.passes = passes

    def __iter__(self) -> Iterator[Any]:
        return _positions(self.passes)

    def __len__(self) -> int:
        return self.passes.peek().samples

    def set_epoch(self, epoch: int) -> None:
        """For tools that know only the sampler; the same as on the dataset."""
        self.dataset.set_epoch(epoch)  # type: ignore[attr-defined]


def _positions(passes: PassCounter) -> Iterator[int]:
    plan = passes.peek()
    whole = -(-plan.samples // plan.batch_size)  # also what a loader drops of the last batch
    for first in range(0, whole, plan.ahead):
        yield from plan.positions(range(first, min(first + plan.ahead, whole))).tolist()


class PlannedBatches(BatchSampler):
    """The batches of `plan`, which the loader sets when an iteration starts."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def __iter__(self) -> Iterator[list[int]]:
        plan = self.plan
        for first in range(0, len(plan), plan.ahead):
            block = plan.positions(range(first, min(first + plan.ahead, len(plan))))
            for begin in range(0, len(block), plan.batch_size):
                yield block[begin : begin + plan.batch_size].tolist()

    def __len__(self) -> int:
        return len(replace(self.plan, start=0))  # of a whole pass, also while one is resumed
