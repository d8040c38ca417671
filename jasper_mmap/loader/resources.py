"""The slots and workers of a loader in this process."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils.data import DataLoader

from ..dataset.batch_layout import Layout
from ..dataset.dataset import JASPERSteeringDataset
from ..dataset.slots import Slots
from ..timing.loader_stats import LoaderStats
from ..timing.step_times import StepTimes
from .passes.given import Given, GivenLocalPass, GivenWorkerPass
from .passes.local_pass import LocalPass, Pass, Progress
from .passes.plan import PassPlan
from .passes.worker_pass import WorkerPass
from .passes.worker_pool import WorkerPool

_LOCAL_SLOTS = 2
"""Without workers: the batch being made, and the previous one, which a loop still holds."""
PREFETCH = 2
"""Batches in flight per worker, as in torch."""

_of_loaders: weakref.WeakKeyDictionary[Any, weakref.WeakSet[Resources]]
_of_loaders = weakref.WeakKeyDictionary()
"""Dataset -> what its loaders hold."""


class Resources:
    """What a loader holds in this process, apart from it: Lightning copies the attributes of a
    loader to the one that it makes instead, which must not use these."""

    def __init__(self) -> None:
        self.last: Progress | None = None
        """Of the latest pass."""
        self.times: StepTimes | None = None
        """Of the latest pass."""
        self._latest: weakref.ref[Pass] | None = None
        self.pool: WorkerPool | None = None
        self._slots: Slots | None = None
        self._rows = 0
        """Rows that a batch in a slot may have."""

    def begin(self, loader: DataLoader[Any], plan: PassPlan, given: Given | None) -> Pass:
        """Begin a pass over the batches of `plan`, or given ones, as the loader's options say."""
        dataset: Any = loader.dataset
        rows = plan.batch_size if given is None else given.rows
        rows = max(1, min(rows, len(dataset)))  # val and test may be empty
        pin = loader.pin_memory
        if not loader.num_workers or (given is None and not len(plan)):
            if dataset.device.type == "cpu" and (self._slots is None or self._rows < rows):
                self._slots = Slots(layout_of(dataset, rows), _LOCAL_SLOTS, shared=False)
                self._rows = rows
            if given is not None:
                return GivenLocalPass(plan, given, dataset, self._slots, self._rows, pin=pin)
            ahead = PREFETCH if _reads_ahead(loader) else 0
            return LocalPass(plan, dataset, self._slots, ahead=ahead, pin=pin)
        self._start(loader, None if given is not None else plan, rows)
        pool = self.pool
        assert pool is not None
        options: dict[str, Any] = {
            "timeout_s": loader.timeout,
            "last": not loader.persistent_workers,
            "pin": pin,
        }
        if not loader.persistent_workers:
            self.pool = None
        if given is not None:
            return GivenWorkerPass(plan, given, dataset, pool, self._rows, **options)
        return WorkerPass(plan, dataset, pool, **options)

    def began(self, latest: Pass, generation: int) -> None:
        """Take `latest` for the latest pass of the loader; `generation` is served."""
        before, left = self.times, self._latest is not None and self._latest() is None
        if before is not None and left:  # early, so that the pass itself has not logged it
            before.report(generation)
        latest.times.follow(before)
        self._latest = weakref.ref(latest)
        self.last, self.times = latest.progress, latest.times

    def stats(self, dataset: JASPERSteeringDataset) -> LoaderStats:
        """What the latest pass has measured; without any, what `dataset` has counted."""
        if self.times is None:
            return dataset.read_counts.stats(dataset.split, dataset.current_epoch)
        return self.times.stats(dataset.generation)

    def _start(self, loader: DataLoader[Any], plan: PassPlan | None, rows: int) -> None:
        """Start workers, unless there are some whose slots have as many rows."""
        pool = self.pool
        if pool is not None and not pool.closed and pool.is_own:
            if self._rows >= rows or not pool.idle:
                return
            pool.close()
        prefetch = loader.prefetch_factor or PREFETCH
        drawn = torch.empty((), dtype=torch.int64, device="cpu")
        self.pool = WorkerPool(
            loader.dataset,  # type: ignore[arg-type]
            plan,
            layout_of(loader.dataset, rows),  # type: ignore[arg-type]
            num_workers=loader.num_workers,
            prefetch=prefetch,
            base_seed=int(drawn.random_(generator=loader.generator)),
            context=loader.multiprocessing_context,
            init=loader.worker_init_fn,
            in_order=getattr(loader, "in_order", True),  # torch >= 2.7
            ahead=loader.num_workers * prefetch if _reads_ahead(loader) else 0,
        )
        self._rows = rows

    def end_others(self, dataset: JASPERSteeringDataset) -> None:
        """End the idle workers of other loaders over the dataset of this one, which mostly is made
        instead of them."""
        others = _of_loaders.setdefault(dataset, weakref.WeakSet())
        for other in tuple(others):
            other._end_idle_workers()
        others.add(self)

    def _end_idle_workers(self) -> None:
        pool = self.pool
        if pool is not None and pool.is_own and pool.idle:
            pool.close()

    @property
    def fallbacks(self) -> int:
        """How often no regular slot was free."""
        slots = self._slots if self.pool is None else self.pool.slots
        return 0 if slots is None else slots.fallbacks


def latest_of(dataset: JASPERSteeringDataset) -> Resources | None:
    """What the loader over `dataset` holds that has begun a pass last; None if none has."""
    begun = {held.times.began: held for held in _of_loaders.get(dataset, ()) if held.times}
    return begun[max(begun)] if begun else None


def layout_of(dataset: JASPERSteeringDataset, batch_size: int) -> Layout:
    """The layout of a slot for batches of up to `batch_size` rows of `dataset`."""
    rows = max(1, min(batch_size, len(dataset)))
    return Layout(rows, dataset.embedding_dim, dataset.n_neg)


def _reads_ahead(loader: DataLoader[Any]) -> bool:
    return bool(getattr(loader, "read_ahead", False))
