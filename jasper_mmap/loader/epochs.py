"""Moving datasets to an epoch, given a dataset, a DataLoader over datasets, or what wraps one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from torch.utils.data import DataLoader, Dataset

from ..dataset.dataset import JASPERSteeringDataset
from ..errors import UsageError
from ..rules.arguments import integer
from .ranks import agree, agree_on_place

_BELOW: Final = (
    "_dataloader",  # Fabric, Ray
    "base_dataloader",  # Accelerate
    "dataloader",
    "_loader",
    "loader",
    "dataset",
    "datasets",
    "flattened",  # Lightning's CombinedLoader
)
"""Attributes that lead from a wrapper to what it wraps, or to several."""
_FABRICS_EPOCH: Final = "_num_iter_calls"
"""Where Fabric counts, and whence it sets the epoch of the sampler when an iteration begins."""


def datasets_of(target: Any, caller: str) -> list[JASPERSteeringDataset]:
    """Return the datasets of this package in `target`, each once.

    `target` is a dataset, a DataLoader over it, or over a `Subset` or `ConcatDataset` of datasets,
    or a wrapper of one of these. Raises `UsageError` in the name of `caller` if it contains none.
    """
    if datasets := [part for part in parts_of(target) if isinstance(part, JASPERSteeringDataset)]:
        return datasets
    over = f" over {_kind(target.dataset)}" if isinstance(target, DataLoader) else ""
    raise UsageError(
        f"{caller} takes a JASPERSteeringDataset, a loader of create_loader, or a torch DataLoader"
        f" over such a dataset (or over a Subset or ConcatDataset of it), not {_kind(target)}"
        f"{over}."
    )


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}" if value is not None else "None"


def parts_of(target: Any) -> Iterator[Any]:
    """`target` and what it leads to, each once, the outer ones first."""
    seen: dict[int, Any] = {}
    waiting = [target]
    while waiting:
        part = waiting.pop(0)
        if id(part) in seen:
            continue
        seen[id(part)] = part  # kept, so that no other object gets its id
        yield part
        if isinstance(part, list | tuple):
            waiting += part
        elif not isinstance(part, JASPERSteeringDataset | type):
            for name in _BELOW:
                below = getattr(part, name, None)
                if below is not None:
                    waiting.append(below)


def set_epoch(loader: DataLoader[Any] | Dataset[Any], epoch: int) -> None:
    """Move a loader or dataset, its order and all its workers to `epoch` (>= 0).

    `loader` is a loader of `create_loader`, a dataset of this package, a torch `DataLoader` over
    it, either over a `Subset` or `ConcatDataset`, or what Accelerate, Fabric, Ray or another tool
    wraps around one of these. Of a wrapper, its own `set_epoch` is called too; of a torch
    `DataLoader`, that of its sampler or batch sampler. All ranks of a loader made with
    `distributed=True` must call it; then they serve the same generation of hard negatives, that of
    rank 0.
    """
    datasets = datasets_of(loader, "set_epoch")
    epoch = integer("epoch", epoch)  # checked before anything is moved
    for part in parts_of(loader):
        if not isinstance(part, JASPERSteeringDataset):
            _move_wrapper(part, epoch)
    begin_epoch(datasets, epoch)


def _move_wrapper(wrapper: Any, epoch: int) -> None:
    """Move what a wrapper counts by itself; what is ours follows the datasets."""
    if isinstance(getattr(wrapper, _FABRICS_EPOCH, None), int):
        setattr(wrapper, _FABRICS_EPOCH, epoch)
    batches = getattr(wrapper, "batch_sampler", None)
    movable = [wrapper]
    if not hasattr(wrapper, "set_epoch"):
        movable = [getattr(wrapper, "sampler", None), batches, getattr(batches, "sampler", None)]
    for part in {id(part): part for part in movable}.values():
        move = getattr(part, "set_epoch", None)
        if callable(move) and not hasattr(part, "_follows_dataset"):
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
