"""What a model scores that does nothing but add the steering to the question, and where steering
points.

Shape letters as in `schema`; `b` pairs of a block.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from ..rules.names import VARIANTS
from .block import Block
from .relations import MARKS, marks_by_split
from .reports.report import Direction, Share, Untrained

TEMPERATURE: Final = 0.05
"""Of InfoNCE."""
TIE: Final = 1e-6
"""A right source is nearer than a negative by more than this: one of equal content is not."""
APART: Final = 1e-4
"""A right source has a direction from its question if the square of their distance is more than
this share of the sum of their squares."""

_QUESTION: Final = 0
_ROWS, _NEAREST, _LOSS, _NEAREST_ASIDE, _LOSS_ASIDE = range(5)


class UntrainedScores:
    """Sums over rows, by splits of the pair and variant."""

    def __init__(self) -> None:
        self._sums: NDArray[np.float64] = np.zeros((len(VARIANTS), 5, MARKS))
        self._cosines: NDArray[np.float64] = np.zeros((len(VARIANTS), 2))

    def add(self, block: Block, marks: torch.Tensor, known: torch.Tensor) -> None:
        """Count a block; `marks` [b], `known` [b,N] are the negatives that are right sources."""
        squares = block.grams.diagonal(dim1=1, dim2=2)
        for variant in range(len(VARIANTS)):
            products = block.products[:, _QUESTION]
            square = squares[:, _QUESTION]
            if variant != _QUESTION:
                products = products + block.products[:, variant]
                square = square + squares[:, variant] + 2 * block.grams[:, _QUESTION, variant]
            cosines = products * block.scales
            cosines.mul_(_reciprocal_root(square).unsqueeze(1))
            self._add(variant, cosines, marks, known)
            if variant != _QUESTION:
                self._point(variant, block)

    def _add(
        self, variant: int, cosines: torch.Tensor, marks: torch.Tensor, known: torch.Tensor
    ) -> None:
        right = cosines[:, 0]
        cosines[:, 1:].nan_to_num_(-torch.inf)  # a negative that is not finite is not near
        sums = self._sums[variant]
        there = right.isfinite()
        self._sum(sums[_ROWS], marks, there)
        for nearest, loss in ((_NEAREST, _LOSS), (_NEAREST_ASIDE, _LOSS_ASIDE)):
            if nearest == _NEAREST_ASIDE:
                cosines[:, 1:].masked_fill_(known, -torch.inf)
            self._sum(sums[nearest], marks, right > cosines[:, 1:].amax(1) + TIE)
            logits = cosines / TEMPERATURE
            losses = torch.logsumexp(logits, 1) - logits[:, 0]
            self._sum(sums[loss], marks, losses.masked_fill_(~there, 0))

    def _sum(self, into: NDArray[np.float64], marks: torch.Tensor, values: torch.Tensor) -> None:
        into += np.bincount(marks.numpy(), weights=values.numpy(), minlength=MARKS)

    def _point(self, variant: int, block: Block) -> None:
        steering, question = block.grams[:, variant], block.grams[:, _QUESTION]
        own = block.products[:, :, 0]
        square = block.own_squares + question[:, _QUESTION] - 2 * own[:, _QUESTION]
        along = own[:, variant] - steering[:, _QUESTION]
        apart = square > APART * (block.own_squares + question[:, _QUESTION])
        scale = _reciprocal_root(square * steering[:, variant])
        cosines = (along * scale)[apart & (scale > 0)]
        cosines = cosines[cosines.isfinite()]
        self._cosines[variant] += float(cosines.sum(dtype=torch.float64)), len(cosines)

    def by_split(self) -> dict[str, dict[str, Untrained]]:
        """The scores of all rows and of each split, by variant."""
        return {
            split: {
                name: _scores(self._sums[variant][:, which].sum(1))
                for variant, name in enumerate(VARIANTS)
            }
            for split, which in marks_by_split().items()
        }

    def steering(self) -> dict[str, Direction]:
        """Where each kind of steering points."""
        return {
            name: Direction(cosine=float(total / rows) if rows else None, rows=int(rows))
            for name, (total, rows) in zip(VARIANTS, self._cosines, strict=True)
            if name != VARIANTS[_QUESTION]
        }


def _scores(sums: NDArray[np.float64]) -> Untrained:
    rows = int(sums[_ROWS])
    return Untrained(
        nearest=Share(int(sums[_NEAREST]), rows),
        infonce=float(sums[_LOSS] / rows) if rows else None,
        nearest_known_aside=Share(int(sums[_NEAREST_ASIDE]), rows),
        infonce_known_aside=float(sums[_LOSS_ASIDE] / rows) if rows else None,
    )


def _reciprocal_root(squares: torch.Tensor) -> torch.Tensor:
    """1 / sqrt, and 0 of 0 and below."""
    return squares.clamp(min=0).rsqrt().masked_fill_(squares <= 0, 0)
