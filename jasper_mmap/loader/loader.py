"""The DataLoader subclass that serves a dataset of this package."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, default_collate, default_convert

from ..dataset.batch_layout import Columns
from ..dataset.dataset import JASPERSteeringDataset
from ..errors import UsageError
from ..files.torch_modes import plain_tensors
from ..rules.arguments import integer
from ..rules.names import Adopt, Again, Auto
from ..rules.schema import Batch
from ..timing.loader_stats import LoaderStats
from . import sharding
from .epochs import begin_epoch
from .passes.foreign_pass import ForeignPass, bus_errors_explained
from .passes.given import Given
from .passes.given_sampler import GivenSampler
from .passes.local_pass import Pass
from .passes.order import counting
from .passes.plan import PassPlan
from .passes.worker_pool import WorkerPool
from .ranks import agree_on_place
from .resources import Resources
from .resume import begin_pass, resume
from .sampler import PlannedBatches, ReplacingSampler
from .schedule import Batching, Schedule, Shown, scheduled_as_given, warn_if_empty
from .watcher import Watcher, watch_for

MOST = 1 << 40
"""Limit of a batch size: its product with the number of ranks fits 64 bits."""


class JASPERDataLoader(DataLoader[Batch]):
    """A DataLoader whose order is a function of (seed, epoch, pass) and which can be resumed.

    It can be made as any DataLoader can, so a framework can make it again with another sampler:

    - Without a sampler it has an order of its own, which `shuffle` shuffles, divided among ranks as
      `distributed` says (see `create_loader`).
    - A sampler of such a loader is kept, and so is its place. torch's `DistributedSampler` is
      replaced by the order of its rank and world; its epoch is followed.
    - Every other `sampler` or `batch_sampler` is iterated, once a batch. It divides the data or
      not: `distributed` has no effect.

    `dataset_obj` is the dataset, `sampler_obj` the sampler (iterating one of this package yields
    the positions of the next pass without counting it). `state_dict()` has the progress of the
    latest iteration, in batches that were returned; after `load_state_dict()` the next iteration
    continues there. Several threads may iterate it, each over its own pass.
    """

    sampler: Any = Shown()
    """The sampler of positions, or torch's where a batch sampler was given."""
    batch_sampler: Any = Shown()
    """The batch sampler that was given, or torch's over the sampler."""
    _follows_dataset = True
    """Marks that it follows its dataset's epoch, so `epochs.set_epoch` does not call it."""

    def __init__(
        self,
        dataset: JASPERSteeringDataset,
        batch_size: int | None = 1,
        shuffle: bool | None = None,
        sampler: Iterable[Any] | None = None,
        batch_sampler: Iterable[Any] | None = None,
        num_workers: int = 0,
        collate_fn: Callable[[Any], Any] | None = None,
        pin_memory: bool = False,
        drop_last: bool = False,
        timeout: float = 0,
        worker_init_fn: Callable[[int], None] | None = None,
        multiprocessing_context: Any = None,
        generator: torch.Generator | None = None,
        *,
        distributed: bool | Auto = False,
        pad: bool | None = None,
        watch: bool | Adopt = False,
        read_ahead: bool = False,
        **options: Any,
    ) -> None:
        if not isinstance(dataset, JASPERSteeringDataset):
            raise UsageError(
                "JASPERDataLoader serves a JASPERSteeringDataset; use torch's DataLoader for a"
                f" {type(dataset).__name__}."
            )
        self.distributed = sharding.checked(distributed)
        self.pad = pad
        self.watch = watch
        self.read_ahead = read_ahead
        self.dataset_obj = dataset
        self._held = Resources()
        self._part: sharding.Part | None = None
        # Where no sampler is given, the schedule may be decided on first use.
        self._schedule: Schedule | None = None
        self._own_order = False
        try:
            super().__init__(
                dataset,
                batch_size,
                shuffle,
                cast(Any, sampler),
                cast(Any, batch_sampler),
                num_workers,
                collate_fn,
                pin_memory,
                drop_last,
                timeout,
                worker_init_fn,
                multiprocessing_context,
                # Its own generator: torch would draw the workers' seeds from the global one.
                generator or torch.Generator("cpu").manual_seed(dataset.seed),
                **options,
            )
        except ValueError as error:
            raise UsageError(f"{error}") from None
        self._shuffle = bool(shuffle)
        if batch_sampler is not None or self.batch_size is None:
            self._take(scheduled_as_given(dataset, self.sampler, batch_sampler))
        elif sampler is not None:
            self._take(self._batching().of_sampler(sampler))
        else:
            self._own_order = True
            if distributed != "auto":
                self._decided()
        self._held.end_others(dataset)
        self.watcher: Watcher | None = None
        if watch:
            self.watcher = watch_for(self, "now" if watch is True else watch)

    def _batching(self) -> Batching:
        dataset = self.dataset_obj
        return Batching(
            dataset=dataset,
            batch_size=integer("batch_size", self.batch_size, 1, MOST),
            drop_last=self.drop_last,
            pad=dataset.split == "train" if self.pad is None else self.pad,
        )

    def _take(self, schedule: Schedule) -> Schedule:
        self._schedule = schedule
        # Not by setattr, which torch forbids; where a tool that copies the attributes finds them.
        vars(self).update(sampler=schedule.sampler, batch_sampler=schedule.batch_sampler)
        return schedule

    def _decided(self) -> Schedule:
        """What the passes iterate; decided now if it was not before, and kept."""
        if self._schedule is None:
            self._part = sharding.part_of(self.distributed)
            self._take(self._batching().of_part(self._part, shuffle=self._shuffle))
            if self._part is not None:
                self.dataset_obj.collective = True
            warn_if_empty(self, self._part)
        assert self._schedule is not None
        return self._schedule

    @property
    def sampler_obj(self) -> Any:
        """The sampler."""
        return self.sampler

    @property
    def _index_sampler(self) -> Any:
        # DataLoader takes its batches of positions from here. With `batch_sampler` instead,
        # `batch_size` and `drop_last` would be None and False, which misleads tools.
        schedule = self._decided()
        return schedule.sampler if schedule.batches is None else schedule.batches

    @property
    def _is_accelerate_prepared(self) -> bool:
        # Accelerate asks for it where it would divide the data among the processes.
        sharding.must_be_whole(self._decided().passes.world)
        return False

    @property
    def _pool(self) -> WorkerPool | None:
        return self._held.pool

    @plain_tensors
    def __iter__(self) -> Pass:  # type: ignore[override]
        schedule, dataset = self._decided(), self.dataset_obj
        if self._own_order:
            sharding.must_still_be(self._part, self.distributed)
        if isinstance(schedule.sampler, ReplacingSampler):
            schedule.sampler.follow()
        _ = dataset.reader  # raises if it is closed, although workers could still read
        agree_on_place(dataset)
        begin = partial(self._begin, schedule, self._given(schedule))
        with counting:
            begun = begin_pass(schedule.passes, dataset, begin, self.__iter__)
            self._held.began(begun, dataset.generation)
        return begun

    def _given(self, schedule: Schedule) -> Given | None:
        """Begin to take batches from a sampler that was given, if this package makes them."""
        batches = schedule.batches
        if not isinstance(batches, GivenSampler):
            return None
        if batches.plan is not None:
            batches.plan = schedule.passes.peek()
        if self.collate_fn not in (default_collate, default_convert):
            return None
        given = Given(batches, self.dataset_obj)
        given.peek()  # a sampler of ours inside looks at the next pass, before it is counted
        return given

    def _begin(self, schedule: Schedule, given: Given | None, plan: PassPlan) -> Pass:
        batches = schedule.batches
        if isinstance(batches, PlannedBatches):
            batches.plan = plan
        if given is None and (self.collate_fn is not default_collate or batches is None):
            # A custom collate_fn takes samples, as torch's iterator makes them.
            with bus_errors_explained(self.dataset_obj.reader):
                made = cast(Iterator[Columns], super().__iter__())
            sampler = batches if isinstance(batches, GivenSampler) else None
            return ForeignPass(plan, self.dataset_obj, made, sampler, workers=self.num_workers)
        return self._held.begin(self, plan, given)

    @property
    def slot_fallbacks(self) -> int:
        """How often no regular slot was free, since the consumer keeps batches, so that a batch
        took fresh memory."""
        return self._held.fallbacks

    def stats(self) -> LoaderStats:
        """Return what was measured of the latest pass so far; see `jasper_mmap.stats`."""
        return self._held.stats(self.dataset_obj)

    def first_positions(self) -> list[int]:
        """Positions of the first batch of the next pass that has any left, without counting it; []
        if there is none. A sampler that was given is iterated."""
        schedule = self._decided()
        if not isinstance(schedule.batches, PlannedBatches):
            return [int(i) for i in next(iter(self._index_sampler), [])]
        plan = schedule.passes.first()
        positions: list[int] = plan.positions(range(min(1, len(plan)))).tolist()
        return positions

    def padding(self, batch: int) -> int:
        """Number of rows, at the end of batch number `batch` of the latest pass (before any, of the
        next one), that repeat pairs of the pass to fill the batch; see `pad` of `create_loader`."""
        batch = integer("batch", batch)
        batches = self._decided().batches
        return batches.plan.padding(batch) if isinstance(batches, PlannedBatches) else 0

    def set_epoch(self, epoch: int) -> None:
        """Call `jasper_mmap.set_epoch` for this loader."""
        self._decided()
        begin_epoch([self.dataset_obj], epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for `load_state_dict` of a similar loader: plain numbers and strings.

        It is the same on every rank. Batches that were made ahead are not counted.
        """
        passes, last = self._decided().passes, self._held.last
        if last is not None and last.epoch_calls != self.dataset_obj.epoch_calls:
            last = None  # an epoch was begun after its latest batch
        plan, count = (None, 0) if last is None else (last.plan, last.count)
        return passes.state(plan, count).to_dict()

    def load_state_dict(
        self, state: dict[str, Any], *, generation: Again = "auto", other_store: bool = False
    ) -> None:
        """Continue where `state` was taken; world size, batch size and workers may differ.

        After the last batch of a pass that is an empty rest, then the next pass. The generation of
        the state is served until the resumed pass ends, another epoch begins, or
        `reload_negatives()`: with `generation="auto"` if its file is there with the same SHA-256
        and it was not rolled back from, else the newest, with a warning; with "state" a missing
        file is an error. With "current" or `other_store` the newest is served.

        Raises `UsageError` if it is not a state, `JasperError` if split, pairs or seed differ, and
        `StoreChangedError` if the store differs, unless `other_store`. Then nothing has changed.
        One of several ranks raises nothing here, but all do in the next `set_epoch` or iteration.
        """
        passes = self._decided().passes
        resume(passes, self.dataset_obj, state, generation, other_store=other_store)
        self._held.last = None

    def __getstate__(self) -> dict[str, Any]:
        # A copy has the same options and the same next pass; slots, workers and the watch belong to
        # this process.
        return self.__dict__ | {"_held": Resources(), "watcher": None, "_iterator": None}

    def __repr__(self) -> str:
        batches = f", batches={len(self)}" if self._schedule is not None else ""
        return (
            f"{type(self).__name__}({self.dataset_obj!r}, batch_size={self.batch_size},"
            f" drop_last={self.drop_last}, num_workers={self.num_workers}{batches})"
        )
