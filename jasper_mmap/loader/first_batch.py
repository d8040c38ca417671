"""Checking a loader's first batch against the schema of batches. Shape letters as there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from ..dataset.dataset import JASPERSteeringDataset
from ..dataset.samples import Rows
from ..errors import BatchError, BatchTypeError
from ..rules.arguments import positions_in
from ..rules.names import VARIANTS
from ..rules.schema import COLUMNS, Column
from ..store.manifest import Manifest
from .epochs import datasets_of, parts_of
from .loader import JASPERDataLoader

_ROWS = 64
"""Batch size for a dataset that is given without a loader."""


def validate_first_batch(loader: DataLoader[Any] | Dataset[Any]) -> bool:
    """Read the first batch of the next pass and check it; return True, or raise.

    Checks keys, shapes, dtypes, device, NaN and Inf (unless the store was converted with some),
    ranges, clusters, and that steering is zero where the variant is zero. `loader` is as for
    `set_epoch`. A loader of `create_loader` is not advanced: the batch is made in this process and
    the pass is not counted. Any other DataLoader is iterated once. Raises `BatchError` (also an
    `AssertionError`) naming key, row and value.
    """
    datasets = datasets_of(loader, "validate_first_batch")
    loader = _innermost(loader)
    batch = _first(loader)
    if batch is None:
        raise BatchError(
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


def _innermost(target: Any) -> DataLoader[Any]:
    """The loader in `target`, without what is wrapped around it and would count the pass."""
    loaders = [part for part in parts_of(target) if isinstance(part, DataLoader)]
    own = [loader for loader in loaders if isinstance(loader, JASPERDataLoader)]
    if loaders:
        return (own or loaders)[-1]
    whole = target if isinstance(target, Dataset) else datasets_of(target, "")[0]
    return DataLoader(whole, batch_size=_ROWS)


def _first(loader: DataLoader[Any]) -> Any:
    """The first batch of the next pass; None if it has none."""
    if not isinstance(loader, JASPERDataLoader):
        return next(iter(loader), None)
    positions = loader.first_positions()
    if not positions:
        return None
    dataset = loader.dataset_obj
    known = positions_in(positions, len(dataset), dataset.split)
    # Read without being counted as a batch of a training.
    return loader.collate_fn(Rows(dataset.reader.read(known), len(known)))  # type: ignore[arg-type]


def _check_keys(batch: Any) -> None:
    if not isinstance(batch, Mapping):
        raise BatchTypeError(
            f"a batch is a {type(batch).__name__}, not a dict of tensors; a custom collate_fn must"
            " return what the default one does."
        )
    missing = [name for name in COLUMNS if name not in batch]
    unknown = [name for name in batch if name not in COLUMNS]
    if missing or unknown:
        wrong = [f"lacks {missing}"] if missing else []
        wrong += [f"has the unknown keys {unknown}"] if unknown else []
        raise BatchError(f"the batch {' and '.join(wrong)}; its keys must be {', '.join(COLUMNS)}.")


def _size(batch: Mapping[str, Any]) -> int:
    name = next(iter(COLUMNS))
    column = batch[name]
    if not isinstance(column, torch.Tensor) or column.ndim == 0:
        raise BatchTypeError(
            f"{name}: is a {type(column).__name__}, but must be a tensor with rows."
        )
    return len(column)


def _check_column(
    column: Column, values: Any, size: int, datasets: list[JASPERSteeringDataset]
) -> None:
    name, first = column.name, datasets[0]
    if not isinstance(values, torch.Tensor):
        raise BatchTypeError(f"{name}: is a {type(values).__name__}, not a tensor.")
    if values.dtype != column.dtype:
        raise BatchTypeError(f"{name}: is {values.dtype}, must be {column.dtype}.")
    sizes = {"B": size, "D": first.embedding_dim, "N": first.n_neg}
    shape = tuple(sizes[letter] for letter in column.shape)
    if tuple(values.shape) != shape:
        raise BatchError(
            f"{name}: has the shape {list(values.shape)}, must be [{', '.join(column.shape)}] ="
            f" {list(shape)}."
        )
    if values.device != first.device:
        raise BatchError(f"{name}: is on {values.device}, but the dataset is on {first.device}.")
    finite = torch.isfinite(values)
    if not any(_nonfinite_allowed(dataset) for dataset in datasets):
        _refuse(name, values, ~finite, "must be finite")
    if column.low is not None and column.high is not None:
        outside = finite & ((values < column.low) | (values > column.high))
        _refuse(name, values, outside, f"must be {column.low:g} to {column.high:g}")


def _manifest(dataset: JASPERSteeringDataset) -> Manifest:
    return dataset._open().store.manifest


def _nonfinite_allowed(dataset: JASPERSteeringDataset) -> bool:
    manifest = _manifest(dataset)
    return bool(manifest.beyond_float32) or any(e.nonfinite for e in manifest.artifacts.values())


def _check_clusters(clusters: torch.Tensor, datasets: list[JASPERSteeringDataset]) -> None:
    known = max(_manifest(dataset).sizes["N_c"] for dataset in datasets)
    wrong = (clusters < 0) | (clusters >= known)
    _refuse("cluster_id", clusters, wrong, f"must be 0 to {known - 1}: there are {known} clusters")


def _check_zero_steering(steering: torch.Tensor, variants: torch.Tensor) -> None:
    zero = variants == VARIANTS.index("zero")
    _refuse("steering", steering, zero[:, None] & (steering != 0), "must be 0: the variant is zero")


def _refuse(name: str, values: torch.Tensor, wrong: torch.Tensor, rule: str) -> None:
    """Raise `BatchError` naming the first place where `wrong` holds."""
    if not bool(wrong.any()):
        return
    row, *rest = wrong.nonzero()[0].tolist()
    place = f"row {row}" + (f", index {rest}" if rest else "")
    value = values[(row, *rest)].item()
    raise BatchError(
        f"{name}: {place} holds {value:.9g}, {rule}. Run jasper-mmap verify on the store."
    )
