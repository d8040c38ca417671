"""`create_loader` and the DataLoader subclass it returns."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import BatchSampler, DataLoader, Sampler, default_collate

from ..dataset.batch_layout import Columns, Layout
from ..dataset.dataset import JASPERSteeringDataset
from ..dataset.placement import device_named
from ..dataset.slots import Slots
from ..errors import DeviceError
from ..files.page_cache import fits, read_through
from ..files.torch_modes import plain_tensors
from ..progress import Show
from ..rules.arguments import integer
from ..rules.names import Adopt, Again, Split, Validation
from ..rules.schema import Batch
from .epochs import begin_epoch
from .passes.local_pass import ForeignPass, LocalPass, Pass
from .passes.order import PassCounter, PassPlan, counting
from .passes.worker_pass import WorkerPass
from .passes.worker_pool import WorkerPool
from .ranks import agree_on_place, rank_and_world
from .resume import begin_pass, resume
from .sampler import OrderedSampler, PlannedBatches, RankSampler, ShuffledSampler
from .watcher import Watcher, watch_negatives

_log = logging.getLogger("jasper_mmap")
_LOCAL_SLOTS = 2
"""Without workers: the batch being made, and the previous one, which a loop still holds."""
_PREFETCH, _PREFETCH_MAX = 2, 8
"""Batches in flight per worker: as in torch, or more small ones within `_PREFETCH_BYTES`."""
_PREFETCH_BYTES = 12 << 20
_MOST = 1 << 40
"""Limit of a batch size: its product with the number of ranks fits 64 bits."""


class JASPERDataLoader(DataLoader[Batch]):
    """A DataLoader whose order is a function of (seed, epoch, pass) and which can be resumed.

    `dataset_obj` is the dataset, `sampler_obj` the sampler (iterating it yields the positions of
    the next pass without counting it). `state_dict()` has the progress of the latest iteration, in
    batches that were returned; after `load_state_dict()` the next iteration continues there.
    Several threads may iterate it, each over its own pass.
    """

    def __init__(
        self,
        dataset: JASPERSteeringDataset,
        batch_size: int,
        *,
        sampler: Sampler[int],
        passes: PassCounter,
        read_ahead: bool = False,
        **options: Any,
    ) -> None:
        # Before super().__init__, which reads `_index_sampler`.
        self._passes = passes
        self._planned = PlannedBatches(passes.peek())
        self._read_ahead = read_ahead
        self._last_pass: Pass | None = None
        self._slots: Slots | None = None
        self._pool: WorkerPool | None = None
        # Its own generator: torch would draw the workers' seeds from the global one.
        options.setdefault("generator", torch.Generator("cpu").manual_seed(dataset.seed))
        super().__init__(dataset, batch_size, sampler=sampler, **options)
        self.dataset_obj = dataset
        self.sampler_obj = sampler
        self.watcher: Watcher | None = None

    @property
    def _index_sampler(self) -> BatchSampler:
        # DataLoader takes its batches of positions from here. With `batch_sampler` instead,
        # `batch_size` and `drop_last` would be None and False, which misleads tools.
        return self._planned

    @plain_tensors
    def __iter__(self) -> Pass:  # type: ignore[override]
        agree_on_place(self.dataset_obj)
        with counting:
            begun = begin_pass(self._passes, self.dataset_obj, self._begin, self.__iter__)
            self._last_pass = begun
        return begun

    def _begin(self, plan: PassPlan) -> Pass:
        _ = self.dataset_obj.reader  # raises if it is closed, although workers could still read
        self._planned.plan = plan
        if self.collate_fn is default_collate:
            return self._own_pass(plan)
        # A custom collate_fn takes samples, as torch's iterator makes them.
        return ForeignPass(plan, self.dataset_obj, cast(Iterator[Columns], super().__iter__()))

    def _own_pass(self, plan: PassPlan) -> Pass:
        dataset = self.dataset_obj
        if not self.num_workers or not len(plan):
            if self._slots is None and dataset.device.type == "cpu":
                layout = _layout(dataset, plan.batch_size)
                self._slots = Slots(layout, _LOCAL_SLOTS, shared=False)
            ahead = _PREFETCH if self._read_ahead else 0
            return LocalPass(plan, dataset, self._slots, ahead=ahead, pin=self.pin_memory)
        pool = self._pool
        if pool is None or pool.closed or not pool.is_own:
            prefetch = self.prefetch_factor or _PREFETCH
            drawn = torch.empty((), dtype=torch.int64, device="cpu")
            base_seed = int(drawn.random_(generator=self.generator))
            pool = WorkerPool(
                dataset,
                plan,
                _layout(dataset, plan.batch_size),
                num_workers=self.num_workers,
                prefetch=prefetch,
                base_seed=base_seed,
                context=self.multiprocessing_context,
                init=self.worker_init_fn,
                in_order=getattr(self, "in_order", True),  # torch >= 2.7
                ahead=self.num_workers * prefetch if self._read_ahead else 0,
            )
        if self.persistent_workers:
            self._pool = pool
        return WorkerPass(
            plan,
            dataset,
            pool,
            timeout_s=self.timeout,
            last=not self.persistent_workers,
            pin=self.pin_memory,
        )

    @property
    def slot_fallbacks(self) -> int:
        """How often no regular slot was free, since the consumer keeps batches, so that a batch
        took fresh memory."""
        slots = self._pool.slots if self._pool is not None else self._slots
        return 0 if slots is None else slots.fallbacks

    def first_positions(self) -> list[int]:
        """Positions of the first batch of the next pass that has any left, without counting it; []
        if there is none."""
        plan = self._passes.first()
        positions: list[int] = plan.positions(range(min(1, len(plan)))).tolist()
        return positions

    def set_epoch(self, epoch: int) -> None:
        """Call `jasper_mmap.set_epoch` for this loader."""
        begin_epoch([self.dataset_obj], epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the state for `load_state_dict` of a similar loader: plain numbers and strings.

        It is the same on every rank. Batches that were made ahead are not counted.
        """
        last = self._last_pass
        if last is not None and last.epoch_calls != self.dataset_obj.epoch_calls:
            last = None  # an epoch was begun after its latest batch
        plan, count = (None, 0) if last is None else (last.plan, last.count)
        return self._passes.state(plan, count).to_dict()

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
        resume(self._passes, self.dataset_obj, state, generation, other_store=other_store)
        self._last_pass = None

    def __getstate__(self) -> dict[str, Any]:
        # A copy has the same options and the same next pass; slots, workers and the watch belong to
        # this process.
        own = ("_last_pass", "_slots", "_pool", "watcher", "_iterator")
        return self.__dict__ | dict.fromkeys(own)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.dataset_obj!r}, batch_size={self.batch_size},"
            f" drop_last={self.drop_last}, num_workers={self.num_workers}, batches={len(self)})"
        )


def _layout(dataset: JASPERSteeringDataset, batch_size: int) -> Layout:
    rows = max(1, min(batch_size, len(dataset)))  # val and test may be empty
    return Layout(rows, dataset.embedding_dim, dataset.n_neg)


def create_loader(
    dataset_dir: str | Path,
    split: Split,
    batch_size: int,
    num_workers: int = 0,
    distributed: bool = False,
    epoch: int = 0,
    drop_last: bool | None = None,
    pin_memory: bool = True,
    *,
    device: str | torch.device | None = "cpu",
    seed: int = 42,
    validate: Validation = "auto",
    persistent_workers: bool | None = None,
    prefetch_factor: int | None = None,
    multiprocessing_context: Any = None,
    watch: bool | Adopt = False,
    warm: bool | Show = False,
) -> JASPERDataLoader:
    """Return a loader of batches (see `schema.COLUMNS`) of one split of a store.

    Train is shuffled, val and test are in order; `drop_last=None` drops a partial last batch of
    train only. With `distributed` each rank of torch.distributed takes its part, and `batch_size`
    is per rank. `persistent_workers=None` keeps workers from epoch to epoch, if there are any.
    `prefetch_factor=None` keeps 2 batches in flight per worker; of small batches 12 MB, at most 8.
    `pin_memory` is ignored without an accelerator and for a dataset on one. `watch` adopts new hard
    negatives while the loader lives: at once with True or "now", from the next `set_epoch` on with
    "epoch"; see `watch_negatives`. `warm` reads a store that fits into memory before the first
    batch, once a node; for a larger store, rows of the next batches are prefetched. True logs it;
    a function is called with the current file, the bytes read so far, and the total bytes.

    Raises what `JASPERSteeringDataset` raises, `UsageError` for invalid arguments, and
    `DeviceError` for workers with a dataset on a device.
    """
    batch_size = integer("batch_size", batch_size, 1, _MOST)
    num_workers = integer("num_workers", num_workers)
    rank, world = rank_and_world() if distributed else (0, 1)
    if num_workers and device_named(device).type != "cpu":
        raise DeviceError(
            f"num_workers={num_workers} with device={str(device)!r}: a dataset on a device makes"
            " its batches there; use num_workers=0, or device='cpu' with workers."
        )
    dataset = JASPERSteeringDataset(dataset_dir, split, epoch, device, seed=seed, validate=validate)
    train = split == "train"
    drop = train if drop_last is None else drop_last
    passes = PassCounter(dataset, batch_size, drop, train, rank, world)
    sampler: Sampler[int]
    if distributed:
        sampler = RankSampler(
            dataset, passes, rank=rank, world=world, shuffle=train, drop_last=drop
        )
    else:
        sampler = (ShuffledSampler if train else OrderedSampler)(dataset, passes)
    worker_options: dict[str, Any] = {}
    if num_workers:
        fitting = _PREFETCH_BYTES // _layout(dataset, batch_size).nbytes
        worker_options = {
            "persistent_workers": True if persistent_workers is None else persistent_workers,
            "prefetch_factor": prefetch_factor or min(max(_PREFETCH, fitting), _PREFETCH_MAX),
            "multiprocessing_context": multiprocessing_context,
        }
    loader = JASPERDataLoader(
        dataset,
        batch_size,
        sampler=sampler,
        passes=passes,
        drop_last=drop,
        num_workers=num_workers,
        read_ahead=bool(warm) and not _warmed(dataset, warm),
        # Without an accelerator torch would warn at every iteration.
        pin_memory=pin_memory and torch.cuda.is_available() and dataset.device.type == "cpu",
        **worker_options,
    )
    dataset.collective = distributed
    if len(dataset) and not len(loader):
        _log.warning(
            "%r serves no batch: the split has %d pairs%s, fewer than batch_size=%d, and"
            " drop_last=True drops the rest. Use a smaller batch_size, or drop_last=False.",
            loader,
            len(dataset) // world,
            f" for each of {world} ranks" if world > 1 else "",
            batch_size,
        )
    if watch:
        loader.watcher = watch_negatives(loader, adopt="now" if watch is True else watch)
    return loader


def _warmed(dataset: JASPERSteeringDataset, warm: bool | Show) -> bool:
    """Read the whole store into memory if it fits; return whether it did."""
    files, show = dataset.files, warm if callable(warm) else None
    if not fits(files):
        _log.info("%s does not fit into memory: rows are prefetched", files[0].parent)
        return False
    if show is None:
        _log.info("reading %s into memory", files[0].parent)
    read_through(files, show)
    return True
