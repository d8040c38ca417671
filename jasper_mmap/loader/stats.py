"""`stats`: what loaders and datasets have measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from torch.utils.data import DataLoader, Dataset

from ..timing.loader_stats import LoaderStats
from .epochs import datasets_of, parts_of
from .loader import JASPERDataLoader
from .resources import Resources, latest_of

_SEVERAL: Final = (
    "waits of several datasets do not add up, and are those of each: ask for one at a time"
)


def stats(loader_or_dataset: DataLoader[Any] | Dataset[Any]) -> LoaderStats:
    """Return what was measured of the latest pass so far: whether the training waits for data.

    `loader_or_dataset` is as for `set_epoch`. Of a dataset, it is the latest pass of its loaders.
    Batches that torch's own DataLoader (or another loader over a dataset of this package) takes are
    counted where they are made, since the latest `set_epoch`; how long the training waits for them
    is not measured, and None. Of several datasets, the counts are added up. It may be called at any
    time: in the middle of a pass, after a worker has died, after `close()`.
    """
    datasets = datasets_of(loader_or_dataset, "stats")
    parts = list(parts_of(loader_or_dataset))
    own = {part.dataset_obj: part._held for part in parts if isinstance(part, JASPERDataLoader)}
    foreign = not own and any(isinstance(part, DataLoader) for part in parts)
    each = []
    for dataset in datasets:
        held = own.get(dataset) or (None if foreign else latest_of(dataset))
        each.append((held or Resources()).stats(dataset))
    return each[0] if len(each) == 1 else _together(each)


def _together(each: Sequence[LoaderStats]) -> LoaderStats:
    epochs, generations = {s.epoch for s in each}, {s.generation for s in each}
    return LoaderStats(
        split=", ".join(dict.fromkeys(s.split for s in each)),
        epoch=epochs.pop() if len(epochs) == 1 else None,
        batches=sum(s.batches for s in each),
        samples=sum(s.samples for s in each),
        slot_fallbacks=sum(s.slot_fallbacks for s in each),
        generation=generations.pop() if len(generations) == 1 else None,
        batches_since_change=sum(s.batches_since_change for s in each),
        note=_SEVERAL,
    )
