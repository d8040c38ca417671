"""Whether a dataset on a device serves what the same one serves mapped, bit for bit."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jasper_mmap import JASPERSteeringDataset, create_loader
from jasper_mmap.dataset.device.placement import Placement
from jasper_mmap.rules.names import SPLITS, VARIANTS, Split, Variant
from tools.gpu_check.stores import other_negatives

Splits = Mapping[Split, JASPERSteeringDataset]
MOST = 8192
"""Positions that are compared of each split, evenly spaced."""
BATCH_SIZE = 512
LOADER_BATCH_SIZE = 64
LOADER_BATCHES = 50
STEERING: tuple[tuple[int, Variant | None], ...] = (
    (0, None),
    (1, None),
    *((0, v) for v in VARIANTS),
)
"""The epochs and forced variants that are compared."""


def differences_of_store(store: Path, placement: Placement) -> Iterator[str]:
    """Yield a line for each column that differs, in lists of positions of each split and steering.

    Publishes another generation, and compares again after both have adopted it.
    """
    mapped = JASPERSteeringDataset.create_combined_splits(store)
    placed = JASPERSteeringDataset.create_combined_splits(store, placement=placement)
    yield from differences_of_splits(mapped, placed, "as opened")
    number = other_negatives(store)
    for splits in (mapped, placed):
        if splits["train"].adoption.reload() != number:
            yield f"generation {number} was not adopted"
    yield from differences_of_splits(mapped, placed, "reloaded")
    for dataset in (*mapped.values(), *placed.values()):
        dataset.close()


def differences_of_splits(mapped: Splits, placed: Splits, when: str) -> Iterator[str]:
    """Yield a line for each column that differs, and each that is elsewhere."""
    for split in SPLITS:
        one, other = mapped[split], placed[split]
        n = len(one)
        positions = np.unique(np.linspace(0, max(0, n - 1), min(n, MOST)).astype(np.int64))
        for epoch, variant in STEERING:
            for dataset in (one, other):
                dataset.set_epoch(epoch)
                dataset.force_steering(variant)
            where = f"{when}, {split}, epoch {epoch}, steering {variant or 'drawn'}"
            for begin in range(0, len(positions), BATCH_SIZE):
                part = positions[begin : begin + BATCH_SIZE]
                expected, served = (d.__getitems__(part).columns for d in (one, other))
                yield from differences(expected, served, other.device, f"{where}, at {part[0]}")


def differences_of_loaders(store: Path, device: torch.device) -> Iterator[str]:
    """Yield a line for each column that differs, in the first batches of a shuffled pass."""
    both: list[Iterable[Any]] = [
        create_loader(
            store, "train", LOADER_BATCH_SIZE, device=d, drop_last=False, pin_memory=False
        )
        for d in ("cpu", device)
    ]
    for number, (expected, served) in enumerate(islice(zip(*both, strict=True), LOADER_BATCHES)):
        yield from differences(expected, served, device, f"loader, batch {number}")


def differences(
    expected: Mapping[str, Tensor], served: Mapping[str, Tensor], device: torch.device, where: str
) -> Iterator[str]:
    """Yield a line for each column that is not on `device`, or is not that of the CPU."""
    for name, column in expected.items():
        other = served[name]
        if other.device != device:
            yield f"{where}: {name} is on {other.device}, not on {device}"
        other = other.cpu()
        if (other.dtype, other.shape) != (column.dtype, column.shape):
            yield f"{where}: {name} is {other.dtype} {tuple(other.shape)}"
        elif wrong := int((_bits(other) != _bits(column)).sum()):
            yield f"{where}: {name} differs in {wrong:,} of {column.numel():,} values"


def _bits(column: Tensor) -> Tensor:
    """Return float32 as its bits; every NaN has the same, since its payload may change."""
    if not column.is_floating_point():
        return column
    return torch.where(column.isnan(), torch.nan, column).view(torch.int32)
