"""Whether a loader's first batch is what the schema of batches says. Shape letters as there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from .dataset import JASPERSteeringDataset
from .errors import ContentError, ContentTypeError, DeviceError, UsageError
from .loader import JASPERDataLoader
from .manifest import Manifest
from .schema import COLUMNS, VARIANTS, Column


def validate_first_batch(loader: DataLoader[Any]) -> bool:
    """Read the first batch of the next pass and check everything about it; True, or it raises.

    Keys, shapes, dtypes, device, NaN and Inf (unless the store was converted with some), ranges,
    clusters, and zero steering where the variant is zero. A loader of `create_loader` is not moved:
    the batch is made in this process and the pass does not count. Any other DataLoader over
    datasets of this package is iterated once. Raises a `JasperError` naming key, row and value.
    """
    datasets = list(_ours(loader.dataset))
    if not datasets:
        raise UsageError(
            f"the loader's dataset is a {type(loader.dataset).__name__}; validate_first_batch"
            " checks loaders over JASPERSteeringDataset."
        )
    batch = _first(loader)
    if batch is None:
        raise ContentError(
            f"the loader of split {datasets[0].split!r} has no batches: its dataset has"
            f" {len(datasets[0])} pairs, batch_size is {loader.batch_size}, drop_last is"
            f" {loader.drop_last}. Choose a smaller batch_size, drop_last=False, or another split."
        )
    _check_keys(batch)
    size = _size(batch)
    for column in COLUMNS.values():
        _check_column(column, batch[column.name], size, datasets)
    _check_clusters(batch["cluster_id"], datasets)
    _check_zero_steering(batch["steering"], batch["steering_variant"])
    return True


def _ours(dataset: Dataset[Any]) -> Iterator[JASPERSteeringDataset]:
    """The datasets of this package that `dataset` is made of."""
    if isinstance(dataset, JASPERSteeringDataset):
        yield dataset
    elif isinstance(dataset, Subset):
        yield from _ours(dataset.dataset)
    elif isinstance(dataset, ConcatDataset):
        for part in dataset.datasets:
            yield from _ours(part)


def _first(loader: DataLoader[Any]) -> Any:
    """The first batch of the next pass; None if it has none."""
    if not isinstance(loader, JASPERDataLoader):
        return next(iter(loader), None)
    positions = loader.first_positions()
    if not positions:
        return None
    return loader.collate_fn(loader.dataset_obj.__getitems__(positions))  # type: ignore[arg-type]


def _check_keys(batch: Any) -> None:
    if not isinstance(batch, Mapping):
        raise ContentTypeError(
            f"a batch is a {type(batch).__name__}, not a dict of tensors; a collate_fn of your own"
            " must return what the default one does."
        )
    missing = [name for name in COLUMNS if name not in batch]
    unknown = [name for name in batch if name not in COLUMNS]
    if missing or unknown:
        told = [f"lacks {missing}"] if missing else []
        told += [f"has {unknown} besides"] if unknown else []
        raise ContentError(f"the batch {' and '.join(told)}; its keys are {list(COLUMNS)}.")


def _size(batch: Mapping[str, Any]) -> int:
    name = next(iter(COLUMNS))
    column = batch[name]
    if not isinstance(column, torch.Tensor) or column.ndim == 0:
        raise ContentTypeError(f"{name}: is no tensor with rows, but {type(column).__name__}.")
    return len(column)


def _check_column(
    column: Column, values: Any, size: int, datasets: list[JASPERSteeringDataset]
) -> None:
    name, first = column.name, datasets[0]
    if not isinstance(values, torch.Tensor):
        raise ContentTypeError(f"{name}: is a {type(values).__name__}, not a tensor.")
    if values.dtype != column.dtype:
        raise ContentTypeError(f"{name}: is {values.dtype}, must be {column.dtype}.")
    sizes = {"B": size, "D": first.embedding_dim, "N": first.n_neg}
    wanted = tuple(sizes[letter] for letter in column.shape)
    if tuple(values.shape) != wanted:
        raise ContentError(
            f"{name}: has the shape {list(values.shape)}, must be [{', '.join(column.shape)}] ="
            f" {list(wanted)}."
        )
    if values.device != first.device:
        raise DeviceError(f"{name}: lies on {values.device}, the dataset on {first.device}.")
    finite = torch.isfinite(values)
    if not any(_nonfinite_allowed(dataset) for dataset in datasets):
        _refuse(name, values, ~finite, "must be finite")
    if column.low is not None and column.high is not None:
        outside = finite & ((values < column.low) | (values > column.high))
        _refuse(name, values, outside, f"must be {column.low:g} to {column.high:g}")


def _manifest(dataset: JASPERSteeringDataset) -> Manifest:
    return dataset._open().store.manifest


def _nonfinite_allowed(dataset: JASPERSteeringDataset) -> bool:
    return any(entry.nonfinite for entry in _manifest(dataset).artifacts.values())


def _check_clusters(clusters: torch.Tensor, datasets: list[JASPERSteeringDataset]) -> None:
    known = max(_manifest(dataset).sizes["N_c"] for dataset in datasets)
    wrong = (clusters < 0) | (clusters >= known)
    _refuse("cluster_id", clusters, wrong, f"must be 0 to {known - 1}, for there are {known}")


def _check_zero_steering(steering: torch.Tensor, variants: torch.Tensor) -> None:
    zero = variants == VARIANTS.index("zero")
    _refuse("steering", steering, zero[:, None] & (steering != 0), "must be 0: the variant is zero")


def _refuse(name: str, values: torch.Tensor, wrong: torch.Tensor, rule: str) -> None:
    """Raise `ContentError` naming the first place where `wrong` holds."""
    if not bool(wrong.any()):
        return
    row, *rest = wrong.nonzero()[0].tolist()
    place = f"row {row}" + (f", place {rest}" if rest else "")
    value = values[(row, *rest)].item()
    raise ContentError(
        f"{name}: {place} holds {value:.9g}, {rule}. Run jasper-mmap verify on the store."
    )
