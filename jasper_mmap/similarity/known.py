"""Negatives that are right sources of the question, by number or by content.

Shape letters as in `schema`; `b` pairs of a block, `m` right sources of theirs.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import torch

from .cosines import Embeddings
from .duplicates import SAME_COSINE, cosines_of
from .relations import Relations, at

_APART: Final = math.sqrt(2 - 2 * SAME_COSINE) + 6e-5
"""Two unit rows whose cosine is at least `SAME_COSINE` are no farther apart. So nor are, by
Cauchy-Schwarz, their cosines with any third row, nor any of their numbers."""
_NUMBERS: Final = 8
"""Of two rows that are compared before the whole rows are."""
_CELLS: Final = 1 << 20


class KnownRight:
    """Looks for the right sources of the questions among their negatives.

    `own` [N_p] is the cosine of each pair, of at least the pairs of the questions asked about.
    """

    def __init__(self, embeddings: Embeddings, relations: Relations, own: torch.Tensor) -> None:
        self._of = embeddings
        self._relations = relations
        self._own = own
        begins = embeddings.sources[:, :_NUMBERS].to(embeddings.dtype)
        self._begins = begins * embeddings.source_scales.unsqueeze(1)
        """[N_s,8] The first numbers of the unit rows."""
        self._first = self._begins[:, 0].contiguous()

    def among(
        self, questions: torch.Tensor, numbers: torch.Tensor, cosines: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return which negatives `numbers` [b,N] of the `questions` [b] are right sources of them
        by number, and which others by content, bool [b,N]; `cosines` [b,N] are those of both."""
        right = self._relations.right_sources(questions)
        by_number = torch.zeros(numbers.shape, dtype=torch.bool, device="cpu")
        by_content = torch.zeros_like(by_number)
        first = at(self._first, numbers)
        step = max(1, _CELLS // numbers.shape[1])
        for begin in range(0, len(right.row), step):
            part = slice(begin, begin + step)
            rows, sources = right.row[part], right.source[part]
            own = at(self._own, right.pair[part]).unsqueeze(1)
            # Of an equal number too; NaN is not far.
            far = at(cosines, rows).sub_(own).abs_() > _APART
            far |= at(first, rows).sub_(at(self._first, sources).unsqueeze(1)).abs_() > _APART
            entry, slot = _places(~far)
            slot += at(rows, entry) * numbers.shape[1]
            negative, source = numbers.take(slot), at(sources, entry)
            by_number.view(-1)[slot[negative == source]] = True
            by_content.view(-1)[slot[self._same(negative, source)]] = True
        return by_number, by_content & ~by_number

    def _same(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """The places where sources `a` and `b` [n], of different numbers, have the same content."""
        apart = at(self._begins, a).sub_(at(self._begins, b)).square_().sum(1)
        places = ((apart <= _APART**2) & (a != b)).nonzero()[:, 0]
        table, scales = self._of.sources, self._of.source_scales
        return places[cosines_of(table, scales, a[places], b[places]) >= SAME_COSINE]


def _places(flags: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns where `flags` [m,N] are true."""
    flat = torch.from_numpy(np.flatnonzero(flags.numpy()))
    return flat // flags.shape[1], flat % flags.shape[1]
