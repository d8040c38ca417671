"""The samplers of this package's loaders.

They are subclasses of the torch ones they stand for, since tools that rewrap a loader look at
types.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch.utils.data import BatchSampler, DistributedSampler, RandomSampler, SequentialSampler

from ..dataset.dataset import JASPERSteeringDataset
from .epochs import begin_epoch
from .passes.order import PassCounter
from .passes.plan import PassPlan
from .sharding import must_not_be_divided

_log = logging.getLogger("jasper_mmap")
_other_seeds: set[tuple[int, int]] = set()
"""Seeds of replaced samplers, and ours, that were logged."""


class _Sampler:
    """The common part of the samplers. Iterating one does not count a pass."""

    passes: PassCounter
    dataset: Any
    _follows_dataset = True
    """Marks that it follows its dataset's epoch, so `epochs.set_epoch` does not call it."""

    def __iter__(self) -> Iterator[int]:
        return _positions(self.passes)

    def set_epoch(self, epoch: int) -> None:
        """Call `jasper_mmap.set_epoch` for the loader, for tools that know only the sampler."""
        begin_epoch([self.dataset], epoch)


class ShuffledSampler(_Sampler, RandomSampler):
    """Positions of a shuffled pass."""

    def __init__(self, dataset: JASPERSteeringDataset, passes: PassCounter) -> None:
        RandomSampler.__init__(self, dataset)
        self.dataset = dataset
        self.passes = passes

    def __len__(self) -> int:
        return self.passes.peek().n


class OrderedSampler(_Sampler, SequentialSampler):
    """Positions in the order of the split."""

    def __init__(self, dataset: JASPERSteeringDataset, passes: PassCounter) -> None:
        SequentialSampler.__init__(self, dataset)
        self.dataset = dataset
        self.passes = passes


class RankSampler(_Sampler, DistributedSampler[Any]):
    """The positions of one rank, batch by batch; see `PassPlan`."""

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
        DistributedSampler.__init__(
            self,
            dataset,
            num_replicas=world,
            rank=rank,
            shuffle=shuffle,
            seed=dataset.seed,
            drop_last=drop_last,
        )
        self.passes = passes

    def __len__(self) -> int:
        return self.passes.peek().samples

    def __iter__(self) -> Iterator[int]:
        must_not_be_divided(self, self.num_replicas)
        return super().__iter__()

    def set_epoch(self, epoch: int) -> None:
        """Call `jasper_mmap.set_epoch` for the loader; every rank must call it."""
        # Here too: with dispatch_batches only one rank iterates, and the others would wait for it.
        must_not_be_divided(self, self.num_replicas)
        super().set_epoch(epoch)
        self.epoch = epoch


class ReplacingSampler(RankSampler):
    """Stands for a `DistributedSampler` that a user or a framework has made: its rank and world,
    and whether it shuffles. The order is ours; its epoch is followed."""

    def __init__(
        self,
        replaced: DistributedSampler[Any],
        dataset: JASPERSteeringDataset,
        passes: PassCounter,
    ) -> None:
        super().__init__(
            dataset,
            passes,
            rank=replaced.rank,
            world=replaced.num_replicas,
            shuffle=replaced.shuffle,
            drop_last=replaced.drop_last,
        )
        self._replaced = replaced
        self._followed = 0  # what torch's begin with
        seeds = replaced.seed, dataset.seed
        if replaced.shuffle and replaced.seed != dataset.seed and seeds not in _other_seeds:
            _other_seeds.add(seeds)
            _log.info(
                "the order of a DistributedSampler with seed=%d is replaced by the dataset's own,"
                " with seed=%d",
                *seeds,
            )

    def follow(self) -> None:
        """Begin the epoch of the replaced sampler, if its owner has called its `set_epoch`."""
        if self._replaced.epoch != self._followed:
            self._followed = self._replaced.epoch
            begin_epoch([self.dataset], self._followed)

    def set_epoch(self, epoch: int) -> None:
        """Call `jasper_mmap.set_epoch` for the loader."""
        super().set_epoch(epoch)
        self._replaced.epoch = self._followed = epoch


def is_torchs(sampler: object, *, of: int) -> bool:
    """Whether `sampler` has the order of torch's `DistributedSampler`, whatever its class is, `of`
    so many positions."""
    return (
        isinstance(sampler, DistributedSampler)
        and type(sampler).__iter__ is DistributedSampler.__iter__
        and len(sampler.dataset) == of  # type: ignore[arg-type]
    )


def own_sampler(sampler: object, dataset: JASPERSteeringDataset) -> OwnSampler | None:
    """`sampler` if it is one of this package over `dataset`."""
    if isinstance(sampler, OrderedSampler | ShuffledSampler | RankSampler):
        return sampler if sampler.dataset is dataset else None
    return None


OwnSampler = OrderedSampler | ShuffledSampler | RankSampler


def _positions(passes: PassCounter) -> Iterator[int]:
    plan = passes.peek()
    whole = plan.all_batches  # also what a loader drops of the last batch
    for first in range(0, whole, plan.ahead):
        yield from plan.positions(range(first, min(first + plan.ahead, whole))).tolist()


class PlannedBatches(BatchSampler):
    """The batches of `plan`, which the loader sets when an iteration starts."""

    def __init__(self, plan: PassPlan) -> None:
        self.plan = plan

    def __iter__(self) -> Iterator[list[int]]:
        return self._batches(self.plan)  # the current plan, not that of the first `next`

    @staticmethod
    def _batches(plan: PassPlan) -> Iterator[list[int]]:
        for first in range(0, len(plan), plan.ahead):
            block = plan.positions(range(first, min(first + plan.ahead, len(plan))))
            for begin in range(0, len(block), plan.batch_size):
                yield block[begin : begin + plan.batch_size].tolist()

    def __len__(self) -> int:
        return len(replace(self.plan, start=0))  # of a whole pass, even if it was resumed
