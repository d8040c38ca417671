"""A block of pairs with all products of their embeddings, from which the lint counts.

Shape letters as in `schema`; `b` pairs of the block. The four vectors of a pair are its question
and its steering of the variants but zero, in the order of `names.VARIANTS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch

from ..rules.integers import SIGNED, as_int64
from ..rules.schema import STEERING
from ..store.folder import Store
from ..store.tables import table_tensor
from .cosines import BLOCK, Advance, Embeddings, pieces, silent
from .relations import at

_VECTORS: Final = len(STEERING)
_FINE: Final = 1 + 2**-12
"""A number that less than float32 rounds."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """What is known of some pairs; valid until the next block is made."""

    pairs: torch.Tensor
    """[b]"""
    questions: torch.Tensor
    """[b]"""
    numbers: torch.Tensor
    """[b,N] The negatives."""
    tiers: torch.Tensor
    """[b,N]"""
    products: torch.Tensor
    """[b,4,1+N] Of the four vectors with the own right source and the negatives."""
    grams: torch.Tensor
    """[b,4,4] Of the four vectors with each other."""
    own_squares: torch.Tensor
    """[b] Of the norms of the own right sources."""
    scales: torch.Tensor
    """[b,1+N] 1 / norm of the own right source and the negatives, 0 for zero rows."""
    own: torch.Tensor
    """[b] The cosine of question and own right source, float32."""
    cosines: torch.Tensor
    """[b,N] Of question and negatives, float32."""


@dataclass(frozen=True, kw_only=True)
class _Buffers:
    """Room for the rows of n pairs, and the views of it that are multiplied: making them costs as
    much as multiplying."""

    kinds: tuple[torch.Tensor, ...]
    """4 of [n,D]"""
    vectors: torch.Tensor
    """[n,4,D]"""
    own_columns: torch.Tensor
    """[n,D,4]"""
    sources: torch.Tensor
    """[n*(1+N),D]"""
    columns: torch.Tensor
    """[n,D,1+N]"""


class Blocks:
    """Makes blocks of the pairs of one store and generation, in buffers that are reused."""

    def __init__(
        self,
        store: Store,
        embeddings: Embeddings,
        generation: Mapping[str, torch.Tensor],
        advance: Advance = silent,
    ) -> None:
        self._of = embeddings
        self._steering = [table_tensor(store.tables[name]) for name in STEERING if name is not None]
        self._negatives = generation["hard_negatives"]
        self._tiers = generation["negative_tiers"]
        self._advance = advance
        self._buffers: dict[int, _Buffers] = {}
        if not _multiplies_exactly():
            embeddings.widen()

    @property
    def row_bytes(self) -> int:
        """Bytes of the rows of embeddings that a pair needs."""
        of_sources = (1 + self._negatives.shape[1]) * self._of.sources[:1].nbytes
        return (
            of_sources
            + self._of.questions[:1].nbytes
            + sum(table[:1].nbytes for table in self._steering)
        )

    def of(self, pairs: torch.Tensor) -> Block:
        """Return the block of the pairs [b], int64."""
        own, rooms = self._of, self._of.rooms
        numbers, questions = _integers(self._negatives, pairs), at(own.question_of, pairs)
        sources = torch.cat((at(own.source_of, pairs).unsqueeze(1), numbers), 1)
        products = rooms.room("products", (len(pairs), _VECTORS, sources.shape[1]))
        grams = rooms.room("grams", (len(pairs), _VECTORS, _VECTORS))
        for few in zip(
            pieces(questions, BLOCK),
            pieces(pairs, BLOCK),
            pieces(sources.flatten(), BLOCK * sources.shape[1]),
            pieces(products, BLOCK),
            pieces(grams, BLOCK),
            strict=True,
        ):
            self._multiply(*few)
        self._advance("negatives", len(pairs) * self.row_bytes)
        scales = at(own.source_scales, sources)
        cosines = products[:, 0] * scales
        cosines.mul_(at(own.question_scales, questions).unsqueeze(1))
        return Block(
            pairs=pairs,
            questions=questions,
            numbers=numbers,
            tiers=_integers(self._tiers, pairs),
            products=products,
            grams=grams,
            own_squares=at(own.source_norms, sources[:, 0]).square().to(own.dtype),
            scales=scales,
            own=cosines[:, 0].to(torch.float32),
            cosines=cosines[:, 1:].to(torch.float32).contiguous(),
        )

    def _multiply(
        self,
        questions: torch.Tensor,
        pairs: torch.Tensor,
        sources: torch.Tensor,
        products: torch.Tensor,
        grams: torch.Tensor,
    ) -> None:
        """Write the products of few pairs."""
        buffers = self._buffers_of(grams.shape[0])
        read = self._of.rooms.rows_into
        asked, *steering = buffers.kinds
        read(asked, self._of.questions, questions)
        for out, table in zip(steering, self._steering, strict=True):
            read(out, table, pairs)
        read(buffers.sources, self._of.sources, sources)
        torch.bmm(buffers.vectors, buffers.columns, out=products)
        torch.bmm(buffers.vectors, buffers.own_columns, out=grams)

    def _buffers_of(self, n: int) -> _Buffers:
        if n not in self._buffers:
            width = self._of.questions.shape[1]
            rooms, count = self._of.rooms, 1 + self._negatives.shape[1]
            kinds = rooms.room("vectors", (_VECTORS, n, width))
            sources = rooms.room("sources", (n * count, width))
            vectors = kinds.transpose(0, 1)
            self._buffers[n] = _Buffers(
                kinds=tuple(kinds.unbind()),
                vectors=vectors,
                own_columns=vectors.transpose(1, 2),
                sources=sources,
                columns=sources.view(n, count, width).transpose(1, 2),
            )
        return self._buffers[n]


def _integers(table: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The rows of a table of any integers, as int64."""
    signed = SIGNED.get(table.dtype, table.dtype)  # torch reads no rows of unsigned types
    return as_int64(table.view(signed).index_select(0, rows).view(table.dtype))


def _multiplies_exactly() -> bool:
    """Whether torch multiplies float32 matrices as such, not in fewer bits: a program may have
    asked for that."""
    rows = torch.full((2, 8, 64), _FINE, dtype=torch.float32, device="cpu")
    product = torch.bmm(rows, rows.transpose(1, 2))
    return bool((product / (64 * _FINE**2) - 1).abs().max() < 1e-6)
