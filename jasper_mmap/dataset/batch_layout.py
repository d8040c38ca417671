"""The memory layout of a batch's columns: fresh tensors, or places in one buffer.

In a buffer the columns of embeddings come first, contiguous if the size of each is a multiple of
64 bytes, so that all rows of a batch can be written at once; so can the plain columns after them.

Shape letters as in `schema`.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..rules.schema import COLUMNS, PLAIN, WIDE, Column

Columns = dict[str, torch.Tensor]
"""Columns of a batch by name, all or some."""
_ALIGNMENT: Final = 64
_FORMS_KEPT: Final = 64


def empty_batch(size: int, embedding_dim: int, n_neg: int, device: torch.device) -> Columns:
    """Allocate uninitialised columns of a batch of `size` rows."""
    sizes = {"B": size, "D": embedding_dim, "N": n_neg}
    return {
        c.name: torch.empty([sizes[d] for d in c.shape], dtype=c.dtype, device=device)
        for c in COLUMNS.values()
    }


def empty_plain(
    batches: int, size: int, n_neg: int, device: torch.device
) -> tuple[torch.Tensor, Columns]:
    """Allocate the plain columns of many batches [batches,B,...]; return the bytes [batches,n] that
    they view, a row as in a buffer of `Layout`, and the columns."""
    places = _placed(PLAIN, {"B": size, "N": n_neg})
    packed = torch.empty((batches, places[-1].end), dtype=torch.uint8, device=device)
    columns = {}
    for place in places:
        piece = packed[:, place.begin : place.begin + place.nbytes]
        columns[place.name] = piece.view(COLUMNS[place.name].dtype).view(batches, *place.shape)
    return packed, columns


@dataclass(frozen=True)
class Target:
    """Where a batch is written: its columns and, if they are contiguous, all of `WIDE` as one
    tensor [rows,D] and the bytes of all of `PLAIN`; in a buffer, the columns as arrays too."""

    columns: Mapping[str, torch.Tensor]
    wide: torch.Tensor | None = None
    plain: torch.Tensor | None = None
    arrays: Mapping[str, NDArray[Any]] | None = None


class _Place(NamedTuple):
    """The place of one column in a buffer, in bytes; the next one may begin at `end`."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    begin: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def end(self) -> int:
        end = self.begin + self.nbytes
        return end + -end % _ALIGNMENT


def _placed(columns: Iterable[Column], sizes: Mapping[str, int]) -> list[_Place]:
    places: list[_Place] = []
    begin = 0
    for column in columns:
        shape = tuple(sizes[letter] for letter in column.shape)
        dtype = torch.empty(0, dtype=column.dtype, device="cpu").numpy().dtype
        places.append(_Place(column.name, shape, dtype, begin))
        begin = places[-1].end
    return places


def _record(places: list[_Place]) -> np.dtype[np.void]:
    """The columns as fields of one record."""
    return np.dtype(
        {
            "names": [place.name for place in places],
            "formats": [(place.dtype, place.shape) for place in places],
            "offsets": [place.begin for place in places],
        }
    )


class Layout:
    """The layout of a buffer of `nbytes`, whole pages, for a batch of up to `rows` rows; columns
    are aligned to 64 bytes."""

    def __init__(self, rows: int, embedding_dim: int, n_neg: int) -> None:
        self.rows = rows
        self._sizes = {"D": embedding_dim, "N": n_neg}
        self._known: dict[int, tuple[list[_Place], np.dtype[np.void]]] = {}
        end = self._form(rows)[0][-1].end
        self.nbytes = end + -end % mmap.PAGESIZE

    def _form(self, rows: int) -> tuple[list[_Place], np.dtype[np.void]]:
        """The places of a batch of `rows` rows, and the record dtype that they form."""
        known = self._known.get(rows)
        if known is None:
            if len(self._known) >= _FORMS_KEPT:  # batches of many sizes
                self._known.clear()
            places = _placed(COLUMNS.values(), self._sizes | {"B": rows})
            known = self._known[rows] = places, _record(places)
        return known

    def batch(self, buffer: Any, rows: int) -> Columns:
        """Create fresh tensors over `buffer`, each with its own storage that keeps it alive.

        They are not views of one tensor: autograd versions each one separately, and saving or
        sending one does not include the others.
        """
        return {n: torch.from_numpy(array) for n, array in self._arrays(buffer, rows).items()}

    def _arrays(self, buffer: Any, rows: int) -> dict[str, NDArray[Any]]:
        # Fields of a record take less than half the time of arrays at an offset.
        whole = np.ndarray((), self._form(rows)[1], buffer)
        return {name: whole[name] for name in COLUMNS}

    def target(self, buffer: Any, rows: int) -> Target:
        """Where to write a batch of `rows` rows over `buffer`."""
        places, _ = self._form(rows)
        wide, plain = places[: len(WIDE)], places[len(WIDE) :]
        width = self._sizes["D"]
        count = sum(math.prod(place.shape[:-1]) for place in wide)
        whole = None
        if wide[-1].begin + wide[-1].nbytes == count * width * wide[-1].dtype.itemsize:
            whole = torch.from_numpy(np.ndarray((count, width), wide[-1].dtype, buffer))
        begin, end = plain[0].begin, plain[-1].end
        packed = torch.from_numpy(np.ndarray(end - begin, np.uint8, buffer, begin))
        return Target(self.batch(buffer, rows), whole, packed, self._arrays(buffer, rows))
