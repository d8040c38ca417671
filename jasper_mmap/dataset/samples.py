"""What a dataset hands out: a sample, and B samples that are one ready batch.

`torch.utils.data.default_collate` is told of `Sample`: given `Rows` it takes the batch as it is, so
a stock DataLoader gets whole batches; a custom `collate_fn` sees a sequence of B samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import torch
from torch.utils.data import default_collate
from torch.utils.data._utils.collate import default_collate_fn_map

from ..errors import IndexRangeError


class Sample(dict[str, torch.Tensor]):
    """One row of a batch: the keys of `schema.COLUMNS`, without B."""


class Rows(Sequence[Sample]):
    """B samples over the columns of one batch; sample i views row i."""

    def __init__(self, columns: dict[str, torch.Tensor], size: int) -> None:
        self.columns = columns
        self._size = size

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, row: int) -> Sample: ...
    @overload
    def __getitem__(self, row: slice) -> list[Sample]: ...
    def __getitem__(self, row: int | slice) -> Sample | list[Sample]:
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(self._size))]
        if not -self._size <= row < self._size:
            raise IndexRangeError(f"Index {row} out of range: the batch has {self._size} samples")
        return Sample((name, column[row]) for name, column in self.columns.items())

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(self._size))


def _collate(batch: Sequence[Sample], **_: Any) -> dict[str, torch.Tensor]:
    if isinstance(batch, Rows):
        return batch.columns
    collated: dict[str, torch.Tensor] = default_collate([dict(sample) for sample in batch])
    return collated


default_collate_fn_map[Sample] = _collate
