"""What the passes of a loader iterate: an order of this package, or a sampler that was given."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

from torch.utils.data import BatchSampler, DataLoader, DistributedSampler

from ..dataset.dataset import JASPERSteeringDataset
from ..rules.names import Tail
from .passes.given_sampler import GivenSampler
from .passes.order import PassCounter
from .sampler import (
    OrderedSampler,
    OwnSampler,
    PlannedBatches,
    RankSampler,
    ReplacingSampler,
    ShuffledSampler,
    is_torchs,
    own_sampler,
)
from .sharding import Part, samplers_in

_log = logging.getLogger("jasper_mmap")


class Shown:
    """An attribute of a loader that may be decided when it is first asked for.

    It lies among the instance's variables, where tools that copy those find it.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, loader: Any, owner: type | None = None) -> Any:
        if loader is None:
            return self
        if loader._own_order:
            loader._decided()
        return vars(loader)[self._name]

    def __set__(self, loader: Any, value: Any) -> None:
        vars(loader)[self._name] = value


@dataclass
class Schedule:
    """What the passes of a loader iterate."""

    sampler: Any
    batch_sampler: Any
    """Both as a DataLoader shows them."""
    passes: PassCounter
    batches: PlannedBatches | GivenSampler | None
    """Those of the latest pass; None if a sampler gives single samples."""


@dataclass(frozen=True, kw_only=True)
class Batching:
    """How a loader cuts the order of `dataset` into batches."""

    dataset: JASPERSteeringDataset
    batch_size: int
    drop_last: bool
    pad: bool

    @property
    def tail(self) -> Tail:
        """How ranks divide the end."""
        return "pad" if self.pad else "share"

    def of_part(self, part: Part | None, *, shuffle: bool) -> Schedule:
        """The order of the split, or the part of one rank."""
        dataset = self.dataset
        rank, world = part or (0, 1)
        passes = PassCounter(
            dataset, self.batch_size, self.drop_last, shuffle, rank, world, self.tail
        )
        sampler: OwnSampler
        if part is not None:
            sampler = RankSampler(
                dataset, passes, rank=rank, world=world, shuffle=shuffle, drop_last=self.drop_last
            )
        else:
            sampler = (ShuffledSampler if shuffle else OrderedSampler)(dataset, passes)
        return self._scheduled(sampler)

    def of_sampler(self, sampler: Iterable[Any]) -> Schedule:
        """The order of a sampler that was given: kept if it is ours, replaced by ours if it is
        torch's `DistributedSampler` of as many positions, else iterated."""
        own = own_sampler(sampler, self.dataset)
        if own is not None:
            return self._scheduled(self._resized(own))
        if is_torchs(sampler, of=len(self.dataset)):
            return self._scheduled(self._replacing(cast("DistributedSampler[Any]", sampler)))
        batches = BatchSampler(sampler, self.batch_size, self.drop_last)
        return _given(self.dataset, batches, sampler, batches)

    def _resized(self, sampler: OwnSampler) -> OwnSampler:
        passes = sampler.passes.with_batches(self.batch_size, self.drop_last)
        if passes is not sampler.passes:
            sampler = copy.copy(sampler)
            sampler.passes = passes
        return sampler

    def _replacing(self, sampler: DistributedSampler[Any]) -> ReplacingSampler:
        passes = PassCounter(
            self.dataset,
            self.batch_size,
            self.drop_last,
            sampler.shuffle,
            sampler.rank,
            sampler.num_replicas,
            "cut" if sampler.drop_last else self.tail,
        )
        return ReplacingSampler(sampler, self.dataset, passes)

    def _scheduled(self, sampler: OwnSampler) -> Schedule:
        passes, plan = sampler.passes, sampler.passes.peek()
        batches = BatchSampler(sampler, self.batch_size, self.drop_last)
        # For a tool that knows only this of a loader (the Trainer, in a resume). An attribute:
        # Lightning makes a subclass again, over a sampler of its own.
        vars(batches).update(set_epoch=sampler.set_epoch, follows_dataset=True)
        if (shortage := plan.shortage) is not None:
            _log.warning(
                "split %r has %d pairs, fewer than %d ranks times %d batches: the last ranks have"
                " a batch less than the others, and what waits for all ranks in every step hangs."
                " Use a smaller batch_size, or pad=True, which repeats pairs.",
                plan.split,
                plan.n,
                plan.world,
                shortage,
            )
        return Schedule(sampler, batches, passes, PlannedBatches(plan))


def scheduled_as_given(
    dataset: JASPERSteeringDataset, sampler: Any, batch_sampler: Any | None
) -> Schedule:
    """The schedule of a batch sampler, of a sampler that gives batches (`batch_size=None`), or of
    one that gives single samples."""
    if batch_sampler is not None:
        return _given(dataset, batch_sampler, sampler, batch_sampler)
    if isinstance(sampler, BatchSampler):
        return _given(dataset, sampler, sampler, None)
    return Schedule(sampler, None, PassCounter(dataset, 1, False, False), None)


def _given(
    dataset: JASPERSteeringDataset, batches: Iterable[Any], sampler: Any, batch_sampler: Any
) -> Schedule:
    """The schedule of a sampler of batches that is iterated."""
    for inner in samplers_in(batches):
        if own_sampler(inner, dataset) is not None:
            # It gives the rest of a resumed pass itself.
            return Schedule(sampler, batch_sampler, inner.passes, GivenSampler(batches, None))
    passes = PassCounter(dataset, 1, False, False)  # counts positions, not batches
    return Schedule(sampler, batch_sampler, passes, GivenSampler(batches, passes.peek()))


def warn_if_empty(loader: DataLoader[Any], part: Part | None) -> None:
    """Log that a loader has no batches although its split has pairs."""
    pairs, world = len(loader.dataset), part.world if part else 1  # type: ignore[arg-type]
    if pairs and not len(loader):
        _log.warning(
            "%r serves no batch: the split has %d pairs%s, fewer than batch_size=%d, and"
            " drop_last=True drops the rest. Use a smaller batch_size, or drop_last=False.",
            loader,
            pairs // world,
            f" for each of {world} ranks" if world > 1 else "",
            loader.batch_size,
        )
