"""What a dataset returns: a sample, and B samples that are one ready batch.

`Sample` is registered with `torch.utils.data.default_collate`, which takes the batch of `Rows` as
it is, so a stock DataLoader gets whole batches; a custom `collate_fn` sees B samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast, overload

import torch
from torch.utils.data import default_collate
from torch.utils.data._utils.collate import default_collate_fn_map

from ..errors import IndexRangeError
from ..rules.schema import Batch
from ..rules.unused_dict import filled_when_used
from .batch_layout import Columns


class Sample(dict[str, torch.Tensor]):
    """One row of a batch, of a type registered with `default_collate`."""

    @staticmethod
    def of(columns: Columns, row: int) -> Batch:
        """Row `row` of a batch; its tensors are views."""
        return cast(Batch, Sample((name, column[row]) for name, column in columns.items()))


def _fill(sample: Sample) -> None:
    source = vars(sample).get("source")
    if source is not None:
        dict.update(sample, cast(dict[str, torch.Tensor], Sample.of(*source)))
    sample.__class__ = Sample
    vars(sample).pop("source", None)


@filled_when_used(_fill)
class _UnusedSample(Sample):
    """The first sample of a batch, of which torch's default collate only looks at the type."""

    source: tuple[Columns, int]

    @staticmethod
    def of(columns: Columns, row: int) -> Batch:
        """Row `row` of a batch; its tensors are made on first use."""
        sample = _UnusedSample(cast(Columns, dict.fromkeys(columns)))
        sample.source = columns, row
        return cast(Batch, sample)


class Rows(Sequence[Batch]):
    """B samples over the columns of one batch; sample i views row i."""

    def __init__(self, columns: Columns, size: int) -> None:
        self.columns = columns
        self._size = size

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, row: int) -> Batch: ...
    @overload
    def __getitem__(self, row: slice) -> list[Batch]: ...
    def __getitem__(self, row: int | slice) -> Batch | list[Batch]:
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(self._size))]
        if not -self._size <= row < self._size:
            raise IndexRangeError(f"Index {row} out of range: the batch has {self._size} samples")
        return (Sample if row else _UnusedSample).of(self.columns, row)

    def __iter__(self) -> Iterator[Batch]:
        return (Sample.of(self.columns, i) for i in range(self._size))


def _collate(batch: Sequence[Batch], **_: Any) -> Columns:
    if isinstance(batch, Rows):
        return batch.columns.copy()
    collated: Columns = default_collate([dict(sample) for sample in batch])
    return collated


for _type in (Sample, _UnusedSample):
    default_collate_fn_map[_type] = _collate
