"""`create_loader`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from ..dataset.dataset import JASPERSteeringDataset
from ..dataset.device.placement import device_named
from ..errors import DeviceError
from ..files.memory_pages import fits, read_through
from ..progress import Show
from ..rules.arguments import integer
from ..rules.names import SEED, Adopt, Auto, Split, Validation
from . import sharding
from .loader import MOST, JASPERDataLoader
from .resources import PREFETCH, layout_of

_log = logging.getLogger("jasper_mmap")
_PREFETCH_MAX = 8
_PREFETCH_BYTES = 12 << 20
"""Of small batches more are in flight per worker: as many as this takes, up to the maximum."""


def create_loader(
    dataset_dir: str | Path,
    split: Split,
    batch_size: int,
    num_workers: int = 0,
    distributed: bool | Auto = False,
    epoch: int = 0,
    drop_last: bool | None = None,
    pin_memory: bool = True,
    *,
    device: str | torch.device | None = "cpu",
    seed: int = SEED,
    validate: Validation = "auto",
    pad: bool | None = None,
    persistent_workers: bool | None = None,
    prefetch_factor: int | None = None,
    multiprocessing_context: Any = None,
    watch: bool | Adopt = False,
    warm: bool | Show = False,
) -> JASPERDataLoader:
    """Return a loader of batches (see `schema.COLUMNS`) of one split of a store.

    Train is shuffled, val and test are in order; `drop_last=None` drops a partial last batch of
    train only. With `distributed=True` each rank of torch.distributed takes its part, and
    `batch_size` is per rank; with "auto" so if a process group is up when the order, the length,
    the epoch, the state or a batch is first asked for, else one process takes all. Every pair is
    served once: ranks have as many batches, whose last ones differ by a row. `pad=True` repeats
    pairs instead, so that they have as many rows; `pad=None` does so for train, if it keeps the
    last batch. `persistent_workers=None` keeps workers from epoch to epoch, if there are any.
    `prefetch_factor=None` keeps 2 batches in flight per worker; of small batches 12 MB, at most 8.
    `pin_memory` is ignored without an accelerator and for a dataset on one. `watch` adopts new hard
    negatives while the loader lives: at once with True or "now", from the next `set_epoch` on with
    "epoch"; see `watch_negatives`. `warm` reads a store that fits into memory before the first
    batch, once a node; for a larger store, rows of the next batches are prefetched. True logs it;
    a function is called with the current file, the bytes read so far, and the total bytes.

    Raises what `JASPERSteeringDataset` raises, `UsageError` for invalid arguments, and
    `DeviceError` for workers with a dataset on a device.
    """
    batch_size = integer("batch_size", batch_size, 1, MOST)
    num_workers = integer("num_workers", num_workers)
    if sharding.checked(distributed) is True:
        sharding.part_of(distributed)  # raises before anything is opened
    if num_workers and device_named(device).type != "cpu":
        raise DeviceError(
            f"num_workers={num_workers} with device={str(device)!r}: a dataset on a device makes"
            " its batches there; use num_workers=0, or device='cpu' with workers."
        )
    dataset = JASPERSteeringDataset(dataset_dir, split, epoch, device, seed=seed, validate=validate)
    train = split == "train"
    worker_options: dict[str, Any] = {}
    if num_workers:
        fitting = _PREFETCH_BYTES // layout_of(dataset, batch_size).nbytes
        worker_options = {
            "persistent_workers": True if persistent_workers is None else persistent_workers,
            "prefetch_factor": prefetch_factor or min(max(PREFETCH, fitting), _PREFETCH_MAX),
            "multiprocessing_context": multiprocessing_context,
        }
    return JASPERDataLoader(
        dataset,
        batch_size,
        shuffle=train,
        drop_last=train if drop_last is None else drop_last,
        num_workers=num_workers,
        distributed=distributed,
        pad=pad,
        watch=watch,
        read_ahead=bool(warm) and not _warmed(dataset, warm),
        # Without an accelerator torch would warn at every iteration.
        pin_memory=pin_memory and torch.cuda.is_available() and dataset.device.type == "cpu",
        **worker_options,
    )


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
