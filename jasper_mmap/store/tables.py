"""One artifact of a store, mapped from its file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

import torch

from ..errors import FormatError, IndexRangeError, MissingFileError
from ..files.safetensors import DTYPE_NAMES, MappedFile, few, map_tensors
from ..rules.arguments import integer
from ..rules.integers import as_int64
from ..rules.schema import RAGGED_OFFSETS, RAGGED_VALUES, Artifact
from .manifest import Entry


class Ragged(Sequence[torch.Tensor]):
    """Rows of different lengths: row i is `values[offsets[i]:offsets[i + 1]]`, 1-D int64."""

    def __init__(self, values: torch.Tensor, offsets: torch.Tensor) -> None:
        self.values = values
        self.offsets = offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, row: int) -> torch.Tensor: ...
    @overload
    def __getitem__(self, row: slice) -> list[torch.Tensor]: ...
    def __getitem__(self, row: int | slice) -> torch.Tensor | list[torch.Tensor]:
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        row = integer("a row", row, low=-(2**63))
        if not 0 <= row < len(self):
            raise IndexRangeError(
                f"Index {row} out of range: there are {len(self)} rows, numbered from 0."
            )
        begin, end = self.offsets[row : row + 2].tolist()
        return as_int64(self.values[begin:end])

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (self[i] for i in range(len(self)))

    @property
    def nbytes(self) -> int:
        """Bytes of values and offsets."""
        return self.values.nbytes + self.offsets.nbytes


Table = torch.Tensor | Ragged


def map_table(
    folder: Path, artifact: Artifact, entry: Entry, *, huge: bool = False
) -> tuple[Table, int]:
    """Map one artifact; return it and the `mtime_ns` of its file. Checks only size and header."""
    path = folder / entry.file
    try:
        mapped = map_tensors(path, huge=huge)
    except MissingFileError:
        what = f"Split file not found: {path}" if artifact.split else f"{path} not found"
        raise MissingFileError(f"{what}. Convert again, or copy the whole store.") from None
    if mapped.bytes != entry.bytes:
        raise FormatError(
            f"{path}: has {mapped.bytes} bytes, but the manifest records {entry.bytes}; convert"
            " again, or copy it again."
        )
    return _table(path, artifact, entry, mapped), mapped.mtime_ns


def _table(path: Path, artifact: Artifact, entry: Entry, mapped: MappedFile) -> Table:
    ragged = artifact.kind == "ragged"
    names = (RAGGED_VALUES, RAGGED_OFFSETS) if ragged else (artifact.name,)
    if set(mapped.tensors) != set(names):
        raise FormatError(
            f"{path}: must hold {' and '.join(names)}, found {few(mapped.tensors)}. Convert again,"
            " or copy it again."
        )
    first = mapped.tensors[names[0]]
    shape = tuple(first.shape)
    if ragged:
        offsets = mapped.tensors[RAGGED_OFFSETS]
        if offsets.ndim != 1 or offsets.dtype != torch.int64:
            raise FormatError(f"{path}: its row offsets must be a 1-D int64 tensor; convert again.")
        shape = (len(offsets) - 1, *shape)
    if shape != entry.shape or first.dtype != entry.torch_dtype:
        raise FormatError(
            f"{path}: holds {DTYPE_NAMES[first.dtype]} {list(shape)}, but the manifest records"
            f" {entry.dtype} {list(entry.shape)}; convert again, or copy it again."
        )
    return Ragged(first, mapped.tensors[RAGGED_OFFSETS]) if ragged else first


def table_tensor(table: Table) -> torch.Tensor:
    """The tensor of a table whose values are checked."""
    return table.values if isinstance(table, Ragged) else table
