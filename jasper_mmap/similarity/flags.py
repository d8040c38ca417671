"""The flags of negatives, counted together: one table of how often each combination occurs.

Shape letters as in `schema`; `b` pairs of a block.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from ..rules.schema import TIERS
from .relations import BITS, MARKS
from .reports.report import EvaluationSources, KnownRight, MarginFalse, Share, TierOrder

LOWEST: Final = 1
"""Too similar by the margin, against the lowest right source of the question."""
OWN: Final = 2
"""The same against the pair's own right source."""
NUMBER: Final = 4
"""A right source of the question, by number."""
CONTENT: Final = 8
"""Not that, but its content is that of one."""
KNOWN: Final = NUMBER | CONTENT
EVALUATION: Final = 16
"""Right for val or test pairs only."""
CLUSTERED: Final = 32
"""In any cluster."""
IN_CLUSTER: Final = 64
"""In the cluster of the pair."""
_ALL: Final = 128

_TRAIN: Final = BITS["train"]
_TIERS: Final = TIERS[-1] + 1
GROUPS: Final = MARKS * _TIERS
"""Number of different (splits of the pair, tier)."""
_DESCRIBED: Final = (3, 1, 2, 4)

_LOWEST_ASIDE, _OWN_ASIDE, _LOWEST_ANY, _KNOWN, _NUMBERED, _EVALUATED = (1 << n for n in range(6))
_ROWS_ALL: Final = 64


def packed(flags: dict[int, torch.Tensor]) -> torch.Tensor:
    """Return flags of one shape as one number for each place, uint8, from a bool of each."""
    first = next(iter(flags.values()))
    codes = torch.zeros(first.shape, dtype=torch.uint8, device="cpu")
    for bit, flag in flags.items():
        codes.add_(flag, alpha=bit)
    return codes


def _of_rows() -> NDArray[np.uint8]:
    """What the flags of a slot say of its row [_ALL]: those of a row are of any of its slots."""
    codes = np.arange(_ALL)
    aside = (codes & KNOWN) == 0
    flags = {
        _LOWEST_ASIDE: aside & ((codes & LOWEST) != 0),
        _OWN_ASIDE: aside & ((codes & OWN) != 0),
        _LOWEST_ANY: (codes & LOWEST) != 0,
        _KNOWN: ~aside,
        _NUMBERED: (codes & NUMBER) != 0,
        _EVALUATED: (codes & EVALUATION) != 0,
    }
    table = np.zeros(_ALL, np.uint8)
    for bit, flag in flags.items():
        table[flag] |= bit
    return table


_OF_ROWS: Final = _of_rows()


def groups_of(marks: torch.Tensor, tiers: torch.Tensor) -> torch.Tensor:
    """Return (splits of the pair, tier) of slots [b,N] as one number each, int64."""
    return marks.unsqueeze(1) * _TIERS + tiers


def is_suspect(codes: torch.Tensor) -> torch.Tensor:
    """Return whether slots are too similar by the lowest right source, known ones set aside."""
    return (codes & (LOWEST | KNOWN)) == LOWEST


class FlagCounts:
    """Counts of slots by (splits of the pair, tier, flags), and of rows by (splits, flags)."""

    def __init__(self) -> None:
        self._slots: NDArray[np.int64] = np.zeros((MARKS, _TIERS, _ALL), np.int64)
        self._rows: NDArray[np.int64] = np.zeros((MARKS, _ROWS_ALL), np.int64)

    def add(self, marks: torch.Tensor, groups: torch.Tensor, codes: torch.Tensor) -> None:
        """Count a block: `marks` [b], int64, and of slots [b,N] the `groups_of` and the `codes`."""
        _count(self._slots, groups * _ALL + codes)
        rows = np.bitwise_or.reduce(_OF_ROWS.take(codes.numpy().T), axis=0)
        _count(self._rows, marks * _ROWS_ALL + torch.from_numpy(rows))

    @property
    def slots(self) -> int:
        """All slots."""
        return int(self._slots.sum())

    @property
    def rows(self) -> int:
        """All rows."""
        return int(self._rows.sum())

    def margin_false(self) -> MarginFalse:
        """By the lowest right source, known ones set aside."""
        return self._margin_false(LOWEST, KNOWN, _LOWEST_ASIDE)

    def margin_false_own(self) -> MarginFalse:
        """By the own right source, known ones set aside."""
        return self._margin_false(OWN, KNOWN, _OWN_ASIDE)

    def margin_false_with_known(self) -> MarginFalse:
        """By the lowest right source, known ones too."""
        return self._margin_false(LOWEST, 0, _LOWEST_ANY)

    def _margin_false(self, bit: int, without: int, row_bit: int) -> MarginFalse:
        codes = np.arange(_ALL)
        chosen = self._slots[:, :, (codes & bit != 0) & (codes & without == 0)].sum((0, 2))
        tiers = self._slots.sum((0, 2))
        rows = self._rows[:, np.arange(_ROWS_ALL) & row_bit != 0].sum(1)
        marks, every = np.arange(MARKS), self._rows.sum(1)
        return MarginFalse(
            slots=_share(chosen.sum(), tiers.sum()),
            rows=_share(rows.sum(), every.sum()),
            tiers={str(t): _share(chosen[t], tiers[t]) for t in TIERS},
            splits={
                split: _share(rows[marks & b != 0].sum(), every[marks & b != 0].sum())
                for split, b in BITS.items()
            },
        )

    def known_right(self) -> KnownRight:
        """Negatives that are right sources of the question."""
        slots, codes = self._slots.sum((0, 1)), np.arange(_ALL)
        rows = self._rows.sum(0)
        known = rows[np.arange(_ROWS_ALL) & _KNOWN != 0].sum()
        numbered = rows[np.arange(_ROWS_ALL) & _NUMBERED != 0].sum()
        return KnownRight(
            slots=_share(slots[codes & KNOWN != 0].sum(), slots.sum()),
            rows=_share(known, rows.sum()),
            rows_by_number=_share(numbered, rows.sum()),
            slots_by_number=_share(slots[codes & NUMBER != 0].sum(), slots.sum()),
            slots_by_content=_share(slots[codes & CONTENT != 0].sum(), slots.sum()),
        )

    def evaluation_sources(self, evaluation_only: torch.Tensor, n_neg: int) -> EvaluationSources:
        """Sources that are right for val or test only, among the negatives of train pairs."""
        train = np.arange(MARKS) & _TRAIN != 0
        slots, rows = self._slots[train].sum((0, 1)), self._rows[train].sum(0)
        in_slots = slots[np.arange(_ALL) & EVALUATION != 0].sum()
        in_rows = rows[np.arange(_ROWS_ALL) & _EVALUATED != 0].sum()
        sources = _share(int(evaluation_only.sum()), len(evaluation_only))
        return EvaluationSources(
            sources=sources,
            slots=_share(in_slots, slots.sum()),
            rows=_share(in_rows, rows.sum()),
            chance_slots=sources.share,
            chance_rows=1 - (1 - sources.share) ** n_neg,
        )

    def tier_order(self, medians: dict[int, float | None]) -> TierOrder:
        """Whether the tiers are what they say; `medians` are those of their similarities."""
        there = {tier: median for tier, median in medians.items() if median is not None}
        order = sorted(there, key=lambda tier: (-there[tier], tier))
        codes, slots = np.arange(_ALL), self._slots.sum(0)
        clustered = slots[:, codes & CLUSTERED != 0].sum(1)
        inside = slots[:, codes & IN_CLUSTER != 0].sum(1)
        shares = {tier: _share(inside[tier], clustered[tier]) for tier in TIERS}
        return TierOrder(
            by_median=tuple(order),
            as_described=order == [tier for tier in _DESCRIBED if tier in there],
            in_cluster={str(tier): share for tier, share in shares.items()},
            cluster_as_described=all(
                (share.share > 0.5) == (tier == TIERS[0]) or not share.of
                for tier, share in shares.items()
            ),
        )


def _count(counts: NDArray[np.int64], places: torch.Tensor) -> None:
    counted = np.bincount(places.flatten().numpy(), minlength=counts.size)
    counts += counted.reshape(counts.shape)


def _share(count: int | np.int64, of: int | np.int64) -> Share:
    return Share(int(count), int(of))
