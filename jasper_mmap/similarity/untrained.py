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
_SUMS: Final = 5


class UntrainedScores:
    """Sums over rows, by splits of the pair and variant.

    Pairs are the last dimension here, so that sums over negatives are sums of whole rows.
    """

    def __init__(self) -> None:
        self._sums: NDArray[np.float64] = np.zeros((_SUMS, len(VARIANTS), MARKS))
        self._cosines: NDArray[np.float64] = np.zeros((len(VARIANTS), 2))

    def add(self, block: Block, marks: torch.Tensor, known: torch.Tensor) -> None:
        """Count a block; `marks` [b], `known` [b,N] are the negatives that are right sources."""
        with_question = block.grams[:, _QUESTION].T.contiguous()
        squares = block.grams.diagonal(dim1=1, dim2=2).T.contiguous()
        self._point(block, with_question, squares)
        square = squares + squares[_QUESTION] + 2 * with_question
        square[_QUESTION] = squares[_QUESTION]
        # [1+N,4,b] of (question + steering); that of the variant zero is the question alone.
        cosines = block.products.permute(2, 1, 0).contiguous()
        cosines[:, 1:] += cosines[:, :1]
        cosines.mul_(block.scales.T.unsqueeze(1)).mul_(_reciprocal_root(square))
        cosines[1:].nan_to_num_(-torch.inf, torch.inf, -torch.inf)  # it is not near
        sums = torch.empty((_SUMS, *square.shape), dtype=cosines.dtype, device="cpu")
        self._score(cosines, sums, _NEAREST)
        sums[_ROWS] = cosines[0].isfinite()
        sums[_NEAREST_ASIDE:] = sums[_NEAREST:_NEAREST_ASIDE]
        rows = known.any(1).nonzero()[:, 0]
        if len(rows):
            some = cosines[:, :, rows]
            some[1:].masked_fill_(known[rows].T.unsqueeze(1), -torch.inf)
            part = sums[:, :, rows]
            self._score(some, part, _NEAREST_ASIDE)
            sums[:, :, rows] = part
        chosen = (marks.numpy()[:, None] == np.arange(MARKS)).astype(np.float64)
        self._sums += sums.numpy().astype(np.float64) @ chosen

    def _score(self, cosines: torch.Tensor, sums: torch.Tensor, first: int) -> None:
        """Fill two rows of `sums` [5,4,b]: is the right source nearest, and the loss."""
        right = cosines[0]
        sums[first] = right - TIE > cosines[1:].amax(0)
        # As cosines are at most 1, no exponential is too large for float32.
        weights = (cosines / TEMPERATURE).exp_().sum(0)
        loss = weights.log_().sub_(right, alpha=1 / TEMPERATURE)
        sums[first + 1] = loss.masked_fill_(~right.isfinite(), 0)

    def _point(self, block: Block, with_question: torch.Tensor, squares: torch.Tensor) -> None:
        """Count the cosines of steering and (right source - question), which `apart` they have.

        `with_question` [4,b] are the products of the vectors with the question.
        """
        own = block.products[:, :, 0].T
        both = block.own_squares + squares[_QUESTION]
        square = both - 2 * own[_QUESTION]
        apart = square > APART * both
        scale = _reciprocal_root(square * squares)
        cosines = (own - with_question).mul_(scale)
        counted = cosines.isfinite() & (scale > 0) & apart
        totals = cosines.masked_fill_(~counted, 0).sum(1, dtype=torch.float64)
        self._cosines += torch.stack((totals, counted.sum(1)), 1).numpy()

    def by_split(self) -> dict[str, dict[str, Untrained]]:
        """The scores of all rows and of each split, by variant."""
        return {
            split: {
                name: _scores(self._sums[:, variant][:, which].sum(1))
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
