"""Pair numbers -> batches: every column is read by rows directly into its place. Pure.

It takes two steps. `Lookup.load` looks up the small data of many batches at once: the plain
columns, and the row numbers of the embeddings. `Lookup.fill` then makes one batch, mostly by a
single `torch.index_select` of all its embeddings.

Shape letters as in `schema`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from ..rules.integers import SIGNED, as_int64
from ..rules.schema import PLAIN, STEERING, WIDE, Column
from .batch_layout import Target, empty_plain
from .device.stack import Stack

_PIECE_BYTES: Final = 1 << 21


def rows_of(table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return `table[index]` for a 1-D int64 `index`; unsigned values as int64."""
    if (signed := SIGNED.get(table.dtype)) is not None:
        return as_int64(table.view(signed).index_select(0, index).view(table.dtype))
    return table.index_select(0, index)


class Lookup:
    """The looked-up data of `batches` batches of `batch_size` rows.

    It is reused, since fresh memory would cause page faults each time. `tables` are a store's,
    `stack` joins those of embeddings, if they can be joined. With `queued` no step waits for the
    values of another, as if work was queued on a device.
    """

    def __init__(
        self,
        tables: Mapping[str, torch.Tensor],
        stack: Stack | None,
        *,
        batches: int,
        batch_size: int,
        n_neg: int,
        queued: bool,
    ) -> None:
        self.shape = (batches, batch_size)
        self._tables = tables
        self._stack = stack
        self._queued = queued
        device = tables["pair_index"].device
        # Row numbers in the stack, or in each column's own table; column after column as in WIDE.
        self._counts = [batch_size * (n_neg if "N" in c.shape else 1) for c in WIDE]
        numbers = torch.empty((batches, sum(self._counts)), dtype=torch.int64, device=device)
        self._parts = torch.split(numbers, self._counts, dim=1)
        self._rows = numbers.unbind()
        packed, self._plain = empty_plain(batches, batch_size, n_neg, device)
        self._packed = packed.unbind()
        self._room = {
            name: torch.empty_like(column).flatten(0, 1) for name, column in self._plain.items()
        }

    def load(
        self,
        negatives: Mapping[str, torch.Tensor],
        pairs: torch.Tensor,
        variants: torch.Tensor,
        plain: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Look up the batches of the pair numbers `pairs` and the steering `variants`, as many.

        `negatives` are the tables of one generation. Both are int64 on the tables' device, pairs in
        [0, N_p); this and all references between tables were checked before. The plain columns of a
        single batch may be written directly to `plain`; then only `fill_wide` remains.
        """
        tables, stack = {**self._tables, **negatives}, self._stack
        self._variants = variants.reshape(self.shape)
        room = self._room if plain is None else plain
        questions, sources = rows_of(tables["pair_index"], pairs).to(torch.int64).unbind(1)
        numbers = room["negative_tiers"]  # has the same shape, and is not used until tiers are read
        _read(tables["hard_negatives"], pairs, numbers)
        steering = pairs
        if stack is not None:
            # Row 0 holds the zeros of the zero variant.
            steering = stack.steering.index_select(0, variants).add_(pairs).mul_(variants != 0)
        columns = (questions, sources, steering, numbers)
        for column, rows, part in zip(WIDE, columns, self._parts, strict=True):
            begin = stack.first[column.artifact] if stack and column.artifact else 0
            torch.add(rows.reshape(part.shape), begin, out=part)
        self._packs_plain = plain is None
        for column in PLAIN:
            values = room[column.name]
            if column.artifact is None:
                values.copy_(variants)
            else:
                _read(tables[column.artifact], pairs, values)
            if plain is None:
                place = self._plain[column.name]
                place.copy_(values.view(place.shape))

    def fill(self, batch: int, target: Target) -> None:
        """Write batch number `batch` of the loaded ones."""
        assert self._packs_plain, "load() wrote the plain columns to their places; use fill_wide()"
        self.fill_wide(batch, target)
        if target.plain is not None:
            target.plain.copy_(self._packed[batch])
        else:
            for name, values in self._plain.items():
                target.columns[name].copy_(values[batch])

    def fill_wide(self, batch: int, target: Target) -> None:
        """Write the embeddings of batch number `batch`."""
        if self._stack is not None and target.wide is not None:
            _read(self._stack.table, self._rows[batch], target.wide)
        else:
            for column, table, rows in self._reads(batch):
                out = target.columns[column.name].flatten(0, -2)
                if table is None:
                    self._steer(batch, rows, out)
                else:
                    _read(table, rows, out)

    def rows_read(self, batch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The tables of embeddings and the row numbers that `fill` will read, for each column that
        has one table."""
        for _, table, rows in self._reads(batch):
            if table is not None:
                yield table, rows

    def _reads(self, batch: int) -> Iterator[tuple[Column, torch.Tensor | None, torch.Tensor]]:
        numbers = torch.split(self._rows[batch], self._counts)
        for column, rows in zip(WIDE, numbers, strict=True):
            if self._stack is not None:
                yield column, self._stack.table, rows
            else:
                yield column, self._tables[column.artifact] if column.artifact else None, rows

    def _steer(self, batch: int, pairs: torch.Tensor, out: torch.Tensor) -> None:
        """Read the steering variant by variant, from tables that could not be joined."""
        variants = self._variants[batch]
        out.zero_()
        for variant, name in enumerate(STEERING):
            if name is None:
                continue
            if self._queued:
                here = variants == variant
                # The number of rows must not depend on values: pairs of other variants read row 0.
                rows = self._tables[name].index_select(0, pairs * here).to(out.dtype)
                torch.where(here.unsqueeze(1), rows, out, out=out)
            else:
                places = torch.from_numpy(np.flatnonzero(variants.numpy() == variant))
                rows = self._tables[name].index_select(0, pairs[places])
                out.index_copy_(0, places, rows.to(out.dtype))


class SingleLookup:
    """Reads single batches from joined tables on the CPU.

    numpy looks up the small data, whose calls take a third of the time of torch's for few rows. So
    that no call has to check its row numbers, the pairs are checked once; all other references
    between tables were checked before.
    """

    def __init__(
        self,
        tables: Mapping[str, torch.Tensor],
        negatives: Mapping[str, torch.Tensor],
        stack: Stack,
        split: torch.Tensor,
    ) -> None:
        self._split = split.numpy()
        self._ends = tables["pair_index"].numpy()
        self._negatives = negatives["hard_negatives"].numpy()
        self._stack = stack
        # The row in the stack at which each column's table begins; that of the steering varies.
        self._begins = [stack.first[c.artifact] if c.artifact else 0 for c in WIDE]
        self._steering = np.array([stack.first[name] if name else 0 for name in STEERING])
        self._plain: dict[str, NDArray[Any]] = {}
        self._others: dict[str, torch.Tensor] = {}
        for column in PLAIN:
            table = {**tables, **negatives}.get(column.artifact or "")
            if table is None:
                self._drawn = column.name
            elif table.dtype == column.dtype:
                self._plain[column.name] = table.numpy()
            else:
                self._others[column.name] = table
        self._rooms: list[_Room] = []

    @classmethod
    def of(
        cls,
        tables: Mapping[str, torch.Tensor],
        negatives: Mapping[str, torch.Tensor],
        stack: Stack | None,
        split: torch.Tensor,
    ) -> SingleLookup | None:
        """Return one for these tables; None if they are of other dtypes or not joined."""
        numbers = (split, tables["pair_index"], negatives["hard_negatives"])
        if stack is None or any(table.dtype != torch.int64 for table in numbers):
            return None
        return cls(tables, negatives, stack, split)

    def read(
        self, positions: NDArray[np.int64], variants: NDArray[np.int64], target: Target
    ) -> bool:
        """Write the batch of `positions` [B], which are in range, steered by `variants` [B].

        Returns False, with nothing to be relied on in `target`, if this cannot write there.
        """
        arrays = target.arrays
        pairs = self._split.take(positions)
        # A negative number is a huge one without its sign.
        if arrays is None or target.wide is None or pairs.view(np.uint64).max() >= len(self._ends):
            return False
        room = self._room(len(pairs))
        ends = self._ends.take(pairs, 0)
        self._negatives.take(pairs, 0, room.negatives, "clip")
        steering = self._steering.take(variants)
        steering += pairs
        steering *= variants != 0  # row 0 holds the zeros of the zero variant
        columns = (ends[:, 0], ends[:, 1], steering, room.negatives)
        for column, begin, part in zip(columns, self._begins, room.parts, strict=True):
            np.add(column, begin, part)
        for name, table in self._plain.items():
            table.take(pairs, 0, arrays[name], "clip")
        for name, other in self._others.items():
            _read(other, torch.from_numpy(pairs), target.columns[name])
        arrays[self._drawn][...] = variants
        _read(self._stack.table, room.rows, target.wide)
        self._rooms.append(room)
        return True

    def _room(self, size: int) -> _Room:
        try:
            room = self._rooms.pop()  # atomic: threads may read at once
        except IndexError:
            pass
        else:
            if len(room.negatives) == size:
                return room
        return _Room(size, self._negatives.shape[1])


class _Room:
    """Reused memory: fresh one for a large batch would cause page faults each time."""

    def __init__(self, size: int, n_neg: int) -> None:
        counts = [size * (n_neg if "N" in column.shape else 1) for column in WIDE]
        rows = np.empty(sum(counts), np.int64)
        self.rows = torch.from_numpy(rows)
        parts = np.split(rows, np.cumsum(counts)[:-1])
        self.parts = [
            part.reshape(size, n_neg) if "N" in column.shape else part
            for column, part in zip(WIDE, parts, strict=True)
        ]
        self.negatives = np.empty((size, n_neg), np.int64)


def _read(table: torch.Tensor, index: torch.Tensor, out: torch.Tensor) -> None:
    if table.dtype == out.dtype:
        torch.index_select(table, 0, index, out=out)
        return
    # In pieces: fresh memory for a whole large batch would cause page faults each time.
    piece = max(1, _PIECE_BYTES // (table.stride(0) * table.element_size()))
    for begin in range(0, len(index), piece):
        end = begin + piece
        out[begin:end].copy_(rows_of(table, index[begin:end]))
