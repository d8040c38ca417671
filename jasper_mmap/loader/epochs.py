"""Moving datasets to an epoch, given a dataset or a DataLoader over datasets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from ..dataset.dataset import JASPERSteeringDataset
from ..errors import UsageError
from ..rules.arguments import integer
from .ranks import agree, agree_on_place


def datasets_of(target: Any, caller: str) -> list[JASPERSteeringDataset]:
    """Return the datasets of this package in `target`, each once.

    `target` is a dataset, a DataLoader over it, or over a `Subset` or `ConcatDataset` of datasets.
    Raises `UsageError` in the name of `caller` if it contains none.
    """
    if datasets := list(dict.fromkeys(_inside(target))):
        return datasets
    over = f" over {_kind(target.dataset)}" if isinstance(target, DataLoader) else ""
    raise UsageError(
        f"{caller} takes a JASPERSteeringDataset, a loader of create_loader, or a torch DataLoader"
        f" over such a dataset (or over a Subset or ConcatDataset of it), not {_kind(target)}"
        f"{over}."
    )


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}" if value is not None else "None"


def _inside(target: Any) -> Iterator[JASPERSteeringDataset]:
    if isinstance(target, JASPERSteeringDataset):
        yield target
    elif isinstance(target, DataLoader | Subset):
        yield from _inside(target.dataset)
    elif isinstance(target, ConcatDataset):
        for part in target.datasets:
            yield from _inside(part)


def set_epoch(loader: DataLoader[Any] | Dataset[Any], epoch: int) -> None:
    """Move a loader or dataset, its order and all its workers to `epoch` (>= 0).

    `loader` is a loader of `create_loader`, a dataset of this package, a torch `DataLoader` over
    it, or either over a `Subset` or `ConcatDataset`; of a torch one, `set_epoch` of its sampler or
    batch sampler is called too. All ranks of a loader made with `distributed=True` must call it;
    then they serve the same generation of hard negatives, that of rank 0.
    """
    begin_epoch(datasets_of(loader, "set_epoch"), epoch)
    if isinstance(loader, DataLoader):
        batches = loader.batch_sampler
        samplers = (loader.sampler, batches, getattr(batches, "sampler", None))
        for sampler in {id(sampler): sampler for sampler in samplers}.values():
            # Our own samplers follow their dataset.
            move = getattr(sampler, "set_epoch", None)
            if move is not None and not hasattr(sampler, "follows_dataset"):
                move(epoch)


def begin_epoch(datasets: Iterable[JASPERSteeringDataset], epoch: int) -> None:
    """Move `datasets` and their workers to `epoch`; afterwards all ranks of a loader made with
    `distributed=True` serve one generation of hard negatives."""
    epoch = integer("epoch", epoch)  # checked before anything is moved
    for dataset in datasets:
        dataset.set_epoch(epoch)
        if dataset.collective:
            agree_on_place(dataset, always=True)
            agree(dataset.adoption, dataset.split)
