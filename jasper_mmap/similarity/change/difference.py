"""Two generations of negatives of one store, compared by tier and by row.

Shape letters as in `schema`; `b` rows of a block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from ...progress import Progress
from ...rules.names import MARGIN
from ...rules.schema import TIERS
from ...store.folder import Store
from ..examine import Examination
from ..reports.jsonform import plain
from ..reports.report import GenerationLint, Share
from .slots import KEPT, MOVED, REPLACED, STATES, Block, Numbers, compared, counted

Tables = Mapping[str, torch.Tensor]
Means = NDArray[np.float32]

MOST_ROWS: Final = 5
"""Rows that are listed as those that changed most."""


@dataclass(frozen=True, kw_only=True)
class TierDifference:
    """One tier; a slot of the later generation is kept, moved or replaced as in `slots.STATES`."""

    tier: int
    slots_before: int
    slots_after: int
    kept: int
    moved: int
    replaced: int
    similarity_before: float | None
    """Median cosine of question and negative; None without a slot that has one."""
    similarity_after: float | None
    margin_false_before: Share
    """Slots that are too similar by the margin, known right sources set aside."""
    margin_false_after: Share


@dataclass(frozen=True, kw_only=True)
class RowDifference:
    """The negatives of one pair."""

    pair: int
    kept: int
    moved: int
    replaced: int
    similarity_before: float | None
    """Mean of the row; None where a negative has no cosine."""
    similarity_after: float | None


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What changed from one generation to another."""

    rows: int
    unchanged_rows: int
    """Rows of which every slot is kept."""
    tiers: tuple[TierDifference, ...]
    changed_most: tuple[RowDifference, ...]
    """The rows with the most slots replaced; of these with the most moved, and then with the
    largest change of the mean similarity."""
    lint_before: GenerationLint
    lint_after: GenerationLint

    @property
    def counts(self) -> Numbers:
        """The slots of the later generation [tiers, states]."""
        return np.array([[t.kept, t.moved, t.replaced] for t in self.tiers])

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        value: dict[str, Any] = plain(self)
        return value


def difference(store: Store, before: Tables, after: Tables, progress: Progress) -> Difference:
    """Compare the negatives and tiers [N_p,N] of two generations of a store.

    They are read in blocks; a few numbers a pair are kept.
    """
    examination = Examination(store, progress)
    later = examination.work(after)
    progress.total += later  # or it would grow in the middle
    lint_before, means_before = _linted(examination, before)
    progress.total -= later  # counted where it begins
    lint_after, means_after = _linted(examination, after)
    slots_before = np.zeros(len(TIERS), np.int64)
    slots_after = np.zeros((len(TIERS), len(STATES)), np.int64)
    unchanged = 0
    most: list[RowDifference] = []
    for block in compared(before, after, store.manifest.sizes["N_s"]):
        slots_before += counted(block.tiers_before, np.zeros_like(block.states))[:, 0]
        slots_after += counted(block.tiers_after, block.states)
        unchanged += int((block.states == KEPT).all(1).sum())
        candidates = _most_of(block, means_before[block.rows], means_after[block.rows])
        most = sorted([*most, *candidates], key=_order)[:MOST_ROWS]
    return Difference(
        rows=len(after["hard_negatives"]),
        unchanged_rows=unchanged,
        tiers=tuple(
            TierDifference(
                tier=tier,
                slots_before=int(slots_before[at]),
                slots_after=int(slots_after[at].sum()),
                kept=int(slots_after[at, KEPT]),
                moved=int(slots_after[at, MOVED]),
                replaced=int(slots_after[at, REPLACED]),
                similarity_before=_median(lint_before, tier),
                similarity_after=_median(lint_after, tier),
                margin_false_before=lint_before.margin_false.tiers[str(tier)],
                margin_false_after=lint_after.margin_false.tiers[str(tier)],
            )
            for at, tier in enumerate(TIERS)
        ),
        changed_most=tuple(most),
        lint_before=lint_before,
        lint_after=lint_after,
    )


def _linted(examination: Examination, tables: Tables) -> tuple[GenerationLint, Means]:
    """The lint of a generation, and the mean similarity of each row [N_p]."""
    means = [np.zeros(0, np.float32)]

    def take(cosines: torch.Tensor, _codes: torch.Tensor) -> None:
        means.append(cosines.numpy().mean(axis=1))

    return examination.lint(tables, margin=MARGIN, take=take), np.concatenate(means)


def _median(lint: GenerationLint, tier: int) -> float | None:
    return lint.similarity["all"].tiers[str(tier)].p50


def _most_of(block: Block, before: Means, after: Means) -> list[RowDifference]:
    """The rows of a block that changed most; `before` and `after` [b] are their mean cosines."""
    counts = [(block.states == state).sum(1) for state in (KEPT, MOVED, REPLACED)]
    change = np.nan_to_num(np.abs(after - before))
    first = np.lexsort((-change, -counts[MOVED], -counts[REPLACED]))[:MOST_ROWS]
    return [
        RowDifference(
            pair=block.rows.start + int(row),
            kept=int(counts[KEPT][row]),
            moved=int(counts[MOVED][row]),
            replaced=int(counts[REPLACED][row]),
            similarity_before=_finite(before[row]),
            similarity_after=_finite(after[row]),
        )
        for row in first
        if counts[KEPT][row] < block.states.shape[1]
    ]


def _order(row: RowDifference) -> tuple[int, int, float, int]:
    before, after = row.similarity_before, row.similarity_after
    change = 0.0 if before is None or after is None else abs(after - before)
    return -row.replaced, -row.moved, -change, row.pair


def _finite(value: np.float32) -> float | None:
    return float(value) if np.isfinite(value) else None
