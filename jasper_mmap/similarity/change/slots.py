"""What became of the slots of negatives between two generations, tier by tier.

No embedding is read. The slots of a row are a multiset of (source, tier): their order in a row says
nothing. Shape letters as in `schema`; `b` rows of a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from ...rules.integers import as_int64
from ...rules.schema import TIERS

Numbers = NDArray[np.int64]

KEPT, MOVED, REPLACED = range(3)
STATES: Final = ("kept", "moved", "replaced")
"""State of a slot of the later generation: its source was in the same tier of the row (kept), in
another tier of the row (moved), or it is new to the row (replaced)."""
_CELLS: Final = 1 << 18
"""Slots compared at a time."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """Some rows of both generations."""

    rows: slice
    tiers_before: Numbers
    """[b,N]"""
    tiers_after: Numbers
    """[b,N]"""
    states: Numbers
    """[b,N] of the slots of the later one, indices of `STATES`."""


def compared(
    before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor], n_sources: int
) -> Iterator[Block]:
    """Compare the negatives and tiers [N_p,N] of two generations, block by block."""
    n_pairs, n_neg = after["hard_negatives"].shape
    step = max(1, _CELLS // n_neg)
    for begin in range(0, n_pairs, step):
        rows = slice(begin, min(n_pairs, begin + step))
        sources, tiers = zip(*(_block(tables, rows) for tables in (before, after)), strict=True)
        yield Block(
            rows=rows,
            tiers_before=tiers[0],
            tiers_after=tiers[1],
            states=_states(*map(_keys, sources, tiers, (n_sources, n_sources))),
        )


def _block(tables: Mapping[str, torch.Tensor], rows: slice) -> tuple[Numbers, Numbers]:
    names = ("hard_negatives", "negative_tiers")
    sources, tiers = (as_int64(tables[name][rows]).numpy() for name in names)
    return sources, tiers


def _keys(sources: Numbers, tiers: Numbers, n_sources: int) -> Numbers:
    """A number [b,N] for each slot that orders by row, source and tier; by `_GROUP` it is divided
    into (row, source) and tier."""
    rows = np.arange(len(sources), dtype=np.int64)[:, None]
    return (rows * n_sources + sources) * _GROUP + tiers


_GROUP: Final = TIERS[-1] + 1


def _states(before: Numbers, after: Numbers) -> Numbers:
    """The states [b,N] of the slots of `after`, both given by their keys.

    Of several equal slots as many are kept as there were before. Of what is left of a source in a
    row, the slots of the lowest tiers count as moved, as many as are left before.
    """
    order = np.argsort(after, axis=None, kind="stable")
    old, new = np.sort(before, axis=None), after.reshape(-1)[order]

    def ends(numbers: Numbers, keys: Numbers) -> tuple[Numbers, Numbers]:
        return np.searchsorted(numbers, keys), np.searchsorted(numbers, keys, side="right")

    place = np.arange(len(new))
    first, last = ends(old, new)
    kept = place - np.searchsorted(new, new) < last - first

    groups, old_groups = new // _GROUP, old // _GROUP
    begin, end = ends(groups, groups)
    first, last = ends(old_groups, groups)
    kept_until = np.concatenate([[0], np.cumsum(kept)])
    left_before = (last - first) - (kept_until[end] - kept_until[begin])
    earlier = (place - begin) - (kept_until[place] - kept_until[begin])
    moved = ~kept & (earlier < left_before)

    states = np.empty(len(new), np.int64)
    states[order] = np.where(kept, KEPT, np.where(moved, MOVED, REPLACED))
    return states.reshape(after.shape)


def counted(tiers: Numbers, states: Numbers) -> Numbers:
    """The number of slots [tiers, states]: row t is tier t + 1."""
    cells = (tiers - TIERS[0]) * len(STATES) + states
    counts = np.bincount(cells.reshape(-1), minlength=len(TIERS) * len(STATES))
    return counts.reshape(len(TIERS), len(STATES))


def slot_counts(
    before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor], n_sources: int
) -> Numbers:
    """The number of slots [tiers, states] of the later of two generations."""
    total = np.zeros((len(TIERS), len(STATES)), np.int64)
    for block in compared(before, after, n_sources):
        total += counted(block.tiers_after, block.states)
    return total


def short_form(counts: Numbers) -> str:
    """What became of the slots, in a line: "tier 3: 100% kept; tiers 1, 2, 4: 99.7% replaced".

    Tiers of which most slots have the same state are taken together. `counts` as `slot_counts`.
    """
    groups: dict[int, list[int]] = {}
    for tier, row in zip(TIERS, counts, strict=True):
        if row.sum():
            groups.setdefault(int(row.argmax()), []).append(tier)
    parts = []
    for state, tiers in sorted(groups.items()):
        row = sum(counts[tier - TIERS[0]] for tier in tiers)
        names = f"tier{'' if len(tiers) == 1 else 's'} {', '.join(map(str, tiers))}"
        others = [s for s in range(len(STATES)) if s != state and row[s] > row.sum() * _WORTH]
        shares = [f"{share(row[s], row.sum())} {STATES[s]}" for s in (state, *others)]
        parts.append(f"{names}: {', '.join(shares)}")
    return "; ".join(parts)


_WORTH: Final = 0.05
"""Share of slots from which a state that is not that of most is named too."""


def share(part: int, whole: int) -> str:
    """A share in percent; only all is 100%, and only nothing 0%."""
    if part in (0, whole):
        return "100%" if part else "0%"
    return f"{min(99.9, max(0.1, 100 * part / whole)):.1f}%"
