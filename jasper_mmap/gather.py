"""Pair numbers -> batches: every column read by rows straight into its place. Pure.

In two steps. `look_up` does for many batches at once what is small: the plain columns, and the
numbers of the rows of embeddings. `Lookup.fill` then makes one batch, which is little more than a
single `torch.index_select` of all its embeddings.

Shape letters as in `schema`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from .layout import Target, empty_plain
from .schema import GATHERED, PLAIN, STEERING, WIDE, Column
from .stack import Stack

# torch has no index_select for these: read as the signed dtype of that width, then masked.
_SIGNED = {
    torch.uint16: (torch.int16, 0xFFFF),
    torch.uint32: (torch.int32, 0xFFFFFFFF),
    torch.uint64: (torch.int64, -1),  # checked to be below 2**63 when it was converted
}


def rows_of(table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """`table[index]` for a 1-D int64 `index`; unsigned tables come as int64."""
    if table.dtype in _SIGNED:
        signed, mask = _SIGNED[table.dtype]
        return table.view(signed).index_select(0, index).to(torch.int64) & mask
    return table.index_select(0, index)


def look_up(
    tables: Mapping[str, torch.Tensor],
    pairs: torch.Tensor,
    variants: NDArray[np.int64],
    batch_size: int,
    stack: Stack | None,
) -> Lookup:
    """Look up the batches of the pair numbers `pairs`, each of `batch_size`, and steering
    `variants` (as many).

    `tables` are those of the store and of one generation; `stack` joins those of embeddings, where
    they could be joined. `pairs` is int64 on the tables' device and lies in [0, N_p): that, and
    that the tables refer only to rows that exist, was checked before.
    """
    drawn = torch.from_numpy(variants).to(pairs.device)
    questions, sources = rows_of(tables["pair_index"], pairs).to(torch.int64).unbind(1)
    numbers = rows_of(tables["hard_negatives"], pairs).to(torch.int64)
    steering = pairs
    if stack is not None:
        questions = questions + stack.first["question_embs"]
        sources = sources + stack.first["source_embs"]
        numbers = numbers + stack.first["source_embs"]
        begin = [0 if name is None else stack.first[name] for name in STEERING]
        # Row 0 holds the zeros of the zero variant.
        steering = (pairs + torch.tensor(begin, device=pairs.device)[drawn]) * (drawn != 0)
    batches = len(pairs) // batch_size
    parts = (questions, sources, steering, numbers)
    rows = torch.cat([part.reshape(batches, -1) for part in parts], dim=1)
    packed, plain = empty_plain(batches, batch_size, numbers.shape[1], pairs.device)
    for column in PLAIN:
        values = rows_of(tables[column.artifact], pairs) if column.artifact else drawn
        plain[column.name].copy_(values.view(plain[column.name].shape))
    # Not the generation's tables: they would be held as long as the answer is.
    gathered = {name: tables[name] for name in GATHERED}
    return Lookup(gathered, stack, rows.unbind(), packed.unbind(), plain)


@dataclass(frozen=True)
class Lookup:
    """Batches that need only be filled.

    `rows` has for each batch the row numbers of its embeddings, column after column as in `WIDE`:
    of the stack, or of each column's own table. `plain` has the other columns [batches,B,...],
    `packed` for each batch the bytes of all of them.
    """

    tables: Mapping[str, torch.Tensor]
    stack: Stack | None
    rows: tuple[torch.Tensor, ...]
    packed: tuple[torch.Tensor, ...]
    plain: Mapping[str, torch.Tensor]

    def fill(self, batch: int, target: Target) -> None:
        """Write batch number `batch` of these."""
        if self.stack is not None and target.wide is not None:
            _read(self.stack.table, self.rows[batch], target.wide)
        else:
            for column, table, rows in self._wanted(batch):
                out = target.columns[column.name].flatten(0, -2)
                if table is None:
                    self._steer(batch, rows, out)
                else:
                    _read(table, rows, out)
        if target.plain is not None:
            target.plain.copy_(self.packed[batch])
        else:
            for name, values in self.plain.items():
                target.columns[name].copy_(values[batch])

    def wanted(self, batch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The tables of embeddings and the numbers of those of their rows that `fill` will read,
        as far as a column has a table of its own."""
        for _, table, rows in self._wanted(batch):
            if table is not None:
                yield table, rows

    def _wanted(self, batch: int) -> Iterator[tuple[Column, torch.Tensor | None, torch.Tensor]]:
        tiers = self.plain["negative_tiers"][batch]
        counts = [tiers.numel() if "N" in c.shape else len(tiers) for c in WIDE]
        for column, rows in zip(WIDE, torch.split(self.rows[batch], counts), strict=True):
            if self.stack is not None:
                yield column, self.stack.table, rows
            else:
                yield column, self.tables[column.artifact] if column.artifact else None, rows

    def _steer(self, batch: int, pairs: torch.Tensor, out: torch.Tensor) -> None:
        """Steering by groups of equal variant, from tables that could not be joined."""
        variants = self.plain["steering_variant"][batch]
        out.zero_()
        for variant, name in enumerate(STEERING):
            if name is not None:
                places = (variants == variant).nonzero().view(-1)
                rows = rows_of(self.tables[name], pairs[places])
                out.index_copy_(0, places, rows.to(out.dtype))


def _read(table: torch.Tensor, index: torch.Tensor, out: torch.Tensor) -> None:
    if table.dtype == out.dtype:
        torch.index_select(table, 0, index, out=out)
    else:
        out.copy_(table.index_select(0, index))
