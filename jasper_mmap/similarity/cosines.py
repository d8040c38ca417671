"""The cosines of questions with their right sources and with their negatives.

Rows are read as batches serve them, as float32. A zero row has cosine 0 with everything. A row with
a value that is not finite has no cosine: NaN stands for it.

Shape letters as in `schema`; `b` pairs of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Final

import torch

from ..files.safetensors import chunks
from ..files.torch_modes import plain_tensors
from ..rules.integers import as_int64
from ..store.folder import Store
from ..store.tables import table_tensor

BLOCK: Final = 64
"""Pairs whose rows are in memory at a time: few, so that they stay in the processor's cache."""
_OWN_BLOCK: Final = 400
_LEAST, _MOST = 1e-15, 1e15
"""Norms between which float32 holds the products of two rows."""

Advance = Callable[[str, int], None]
"""Called with the name of what is read, and the number of bytes."""


def silent(_name: str, _bytes: int) -> None:
    """An `Advance` that does nothing."""


def pieces(rows: torch.Tensor, length: int) -> Sequence[torch.Tensor]:
    """Return `rows` in parts of `length`; of none, none."""
    if not len(rows):
        return ()
    parts: Sequence[torch.Tensor] = rows.split(length)  # type: ignore[no-untyped-call]
    return parts


def row_norms(table: torch.Tensor, advance: Advance = silent, name: str = "") -> torch.Tensor:
    """Return the norms [rows] of a table's rows, float64; NaN for a row that is not finite."""
    norms = [torch.empty(0, dtype=torch.float64, device="cpu")]
    for piece in chunks(table):
        rows = piece.to(torch.float32)
        norm = torch.linalg.vector_norm(rows, dim=1).to(torch.float64)
        # Of the others float32 cannot hold the squares, or there is nothing to hold.
        again = ~((norm >= _LEAST) & (norm <= _MOST))
        if again.any():
            norm[again] = torch.linalg.vector_norm(rows[again], dim=1, dtype=torch.float64)
        norms.append(norm)
        advance(name, piece.nbytes)
    every = torch.cat(norms)
    return every.where(every.isfinite(), torch.nan)


class Rooms:
    """Buffers by name, reused while they are large enough: fresh memory would be page-faulted."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._rooms: dict[str, torch.Tensor] = {}

    def room(
        self, name: str, shape: tuple[int, ...], dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """Return the buffer `name` as a tensor of this shape; its content is arbitrary."""
        count = torch.Size(shape).numel()
        kept = self._rooms.get(name)
        if kept is None or kept.numel() < count:
            kept = torch.empty(count, dtype=dtype or self._dtype, device="cpu")
            self._rooms[name] = kept
        return kept[:count].view(shape)

    def rows(self, name: str, table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Return the rows [n,D] of `table` at `index` [n], in the buffer `name`."""
        return self.rows_into(self.room(name, (len(index), table.shape[1])), table, index)

    def rows_into(
        self, out: torch.Tensor, table: torch.Tensor, index: torch.Tensor
    ) -> torch.Tensor:
        """Copy the rows [n,D] of `table` at `index` [n] into `out`, and return it."""
        if table.dtype == out.dtype == torch.float32:
            return torch.index_select(table, 0, index, out=out)
        stored = self.room(f"stored as {table.dtype}", tuple(out.shape), table.dtype)
        torch.index_select(table, 0, index, out=stored)
        # As batches serve them, even where `out` is wider.
        return out.copy_(stored if stored.dtype.itemsize < 4 else stored.to(torch.float32))


class Embeddings:
    """The questions and sources of an open store, and which belong together.

    `questions` [N_q,D] and `sources` [N_s,D] are as stored, `question_of` and `source_of` [N_p] are
    the numbers of each pair. Norms are computed when first used, which reads a table through, and
    kept. `advance` is called with what was read.
    """

    def __init__(self, store: Store, *, advance: Advance = silent) -> None:
        tables = {name: table_tensor(table) for name, table in store.tables.items()}
        self.questions = tables["question_embs"]
        self.sources = tables["source_embs"]
        pair_index = as_int64(tables["pair_index"])
        self.question_of = pair_index[:, 0].contiguous()
        self.source_of = pair_index[:, 1].contiguous()
        self._advance = advance

    @cached_property
    @plain_tensors
    def question_norms(self) -> torch.Tensor:
        """The norms [N_q], float64; NaN for a row that is not finite."""
        return row_norms(self.questions, self._advance, "question_embs")

    @cached_property
    @plain_tensors
    def source_norms(self) -> torch.Tensor:
        """The norms [N_s], float64; NaN for a row that is not finite."""
        return row_norms(self.sources, self._advance, "source_embs")

    @cached_property
    def question_scales(self) -> torch.Tensor:
        """What makes a question's products cosines [N_q]: 1 / norm, 0 for a zero row."""
        return _scales(self.question_norms).to(self.dtype)

    @cached_property
    def source_scales(self) -> torch.Tensor:
        """What makes a source's products cosines [N_s]: 1 / norm, 0 for a zero row."""
        return _scales(self.source_norms).to(self.dtype)

    @cached_property
    def dtype(self) -> torch.dtype:
        """The dtype to multiply in: float32, or float64 where the products of rows need it."""
        norms = torch.cat((self.question_norms, self.source_norms))
        norms = norms[norms > 0]  # false for NaN
        tame = norms.numel() == 0 or (norms.min() >= _LEAST and norms.max() <= _MOST)
        return torch.float32 if tame else torch.float64

    @cached_property
    @plain_tensors
    def rooms(self) -> Rooms:
        """The buffers for the rows of a block."""
        return Rooms(self.dtype)

    def widen(self) -> None:
        """Multiply in float64 from now on."""
        self.dtype = torch.float64
        self.rooms = Rooms(self.dtype)

    @plain_tensors
    def own(self, pairs: torch.Tensor | None = None) -> torch.Tensor:
        """Return the cosine of question and own right source, float32 [N_p].

        With `pairs` [n] (int64) only those are computed, and the others are NaN.
        """
        if pairs is None:
            pairs = torch.arange(len(self.question_of), device="cpu")
        result = torch.full((len(self.question_of),), torch.nan, device="cpu", dtype=torch.float32)
        products = [torch.empty(0, dtype=self.dtype, device="cpu")]
        for some in pieces(pairs, _OWN_BLOCK):
            rows = self.rooms.rows("sources", self.sources, self.source_of[some])
            rows.mul_(self.rooms.rows("questions", self.questions, self.question_of[some]))
            products.append(rows.sum(1))
            self._advance("pair_index", self.own_bytes(some))
        scales = self.source_scales[self.source_of[pairs]]
        scales.mul_(self.question_scales[self.question_of[pairs]])
        result[pairs] = torch.cat(products).mul_(scales).to(torch.float32)
        return result

    def own_bytes(self, pairs: torch.Tensor | None = None) -> int:
        """The bytes of embeddings that `own` reads."""
        count = len(self.question_of if pairs is None else pairs)
        return count * (self.questions[:1].nbytes + self.sources[:1].nbytes)

    @plain_tensors
    def lowest_right(self, own: torch.Tensor | None = None) -> torch.Tensor:
        """Return the lowest cosine among all known right sources of each question, float32 [N_q].

        NaN for a question without a pair, or without a cosine. `own` is what `own()` returned.
        """
        own = self.own() if own is None else own
        lowest = torch.full((len(self.questions),), torch.inf, device="cpu", dtype=torch.float32)
        known = own.isfinite()
        lowest.scatter_reduce_(0, self.question_of[known], own[known], "amin")
        return lowest.where(lowest.isfinite(), torch.nan)


@plain_tensors
def similarities(
    embeddings: Embeddings, hard_negatives: torch.Tensor, rows: slice | torch.Tensor
) -> torch.Tensor:
    """Return the cosines of question and negatives, float32 [b,N], of some `rows` of pairs.

    `rows` is a slice or their numbers [b], int64. `hard_negatives` is the table [N_p,N] of a
    generation, its numbers are checked.
    """
    numbers = as_int64(hard_negatives[rows])
    questions = embeddings.question_of[rows]
    parts = zip(pieces(questions, BLOCK), pieces(numbers, BLOCK), strict=True)
    blocks = [_cosines(embeddings, q, n) for q, n in parts]
    return torch.cat(blocks) if blocks else numbers.to(torch.float32)


def _cosines(
    embeddings: Embeddings, questions: torch.Tensor, numbers: torch.Tensor
) -> torch.Tensor:
    """The cosines [b,n] of the questions [b] with the sources `numbers` [b,n]."""
    rooms, shape = embeddings.rooms, (*numbers.shape, embeddings.sources.shape[1])
    asked = rooms.rows("questions", embeddings.questions, questions)
    rows = rooms.rows("sources", embeddings.sources, numbers.flatten()).view(shape)
    products = torch.mul(rows, asked.unsqueeze(1), out=rows).sum(2)
    scales = embeddings.source_scales[numbers]
    scales.mul_(embeddings.question_scales[questions].unsqueeze(1))
    return scales.mul_(products).to(torch.float32)


def _scales(norms: torch.Tensor) -> torch.Tensor:
    return norms.reciprocal().masked_fill_(norms == 0, 0.0)
