"""What became of slots of negatives, compared with plain loops over rows as multisets."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jasper_mmap.similarity.change import slots
from jasper_mmap.similarity.change.slots import (
    KEPT,
    MOVED,
    REPLACED,
    share,
    short_form,
    slot_counts,
)

Rows = list[list[tuple[int, int]]]
"""(source, tier) of each slot."""
N_SOURCES = 5


def tables_of(rows: Rows, *dtypes: torch.dtype) -> dict[str, torch.Tensor]:
    """Return the negatives and tiers of some rows."""
    both = torch.tensor(rows).reshape(len(rows), -1, 2)
    first, second = dtypes or (torch.int64, torch.int64)
    return {"hard_negatives": both[..., 0].to(first), "negative_tiers": both[..., 1].to(second)}


def by_loops(before: Rows, after: Rows) -> Counter[tuple[int, str]]:
    """Return how many slots of each tier of `after` are kept, moved and replaced."""
    counts: Counter[tuple[int, str]] = Counter()
    for old_row, new_row in zip(before, after, strict=True):
        old = list(old_row)
        rest = []
        for slot in new_row:
            if slot in old:
                old.remove(slot)
                counts[slot[1], "kept"] += 1
            else:
                rest.append(slot)
        left = [source for source, _ in old]
        for source, tier in sorted(rest, key=lambda slot: slot[1]):
            if source in left:
                left.remove(source)
                counts[tier, "moved"] += 1
            else:
                counts[tier, "replaced"] += 1
    return counts


def as_counter(counts: np.ndarray) -> Counter[tuple[int, str]]:
    """Return an array [tiers, states] in the form of `by_loops`."""
    return +Counter(
        {
            (tier, state): int(counts[tier - 1, at])
            for tier in (1, 2, 3, 4)
            for at, state in enumerate(slots.STATES)
        }
    )


slot = st.tuples(st.integers(0, N_SOURCES - 1), st.integers(1, 4))


@st.composite
def generations(draw: st.DrawFn) -> tuple[Rows, Rows]:
    """Return two generations with many equal sources, within rows and between them."""
    shape = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    row = st.lists(slot, min_size=shape[1], max_size=shape[1])
    table = st.lists(row, min_size=shape[0], max_size=shape[0])
    return draw(table), draw(table)


@given(generations())
def test_slots_are_counted_as_multisets(both: tuple[Rows, Rows]) -> None:
    """Of a source twice in a row each slot has a counterpart of its own."""
    before, after = both
    counts = slot_counts(tables_of(before), tables_of(after), N_SOURCES)
    assert as_counter(counts) == by_loops(before, after)


@given(generations())
def test_states_stand_in_the_places_of_the_later_slots(both: tuple[Rows, Rows]) -> None:
    """Row by row, and the numbers of slots are those of the row."""
    before, after = both
    (block,) = slots.compared(tables_of(before), tables_of(after), N_SOURCES)
    for row, states in enumerate(block.states.tolist()):
        expected = by_loops([before[row]], [after[row]])
        tiers = [tier for _, tier in after[row]]
        names = [slots.STATES[state] for state in states]
        assert Counter(zip(tiers, names, strict=True)) == expected


def test_order_within_a_row_says_nothing() -> None:
    """The same slots in another order are kept; a source in another tier is moved."""
    before: Rows = [[(0, 1), (1, 2), (1, 2), (2, 3)]]
    after: Rows = [[(2, 3), (1, 2), (0, 4), (1, 2)]]
    (block,) = slots.compared(tables_of(before), tables_of(after), N_SOURCES)
    assert block.states.tolist() == [[KEPT, KEPT, MOVED, KEPT]]
    twice: Rows = [[(0, 1), (0, 1), (0, 2), (3, 3)]]
    (block,) = slots.compared(tables_of([[(0, 1), (0, 3), (4, 4), (4, 4)]]), tables_of(twice), 5)
    assert block.states.tolist() == [[KEPT, MOVED, REPLACED, REPLACED]]


@pytest.mark.parametrize("dtypes", [(torch.uint16, torch.uint8), (torch.int32, torch.int8)])
def test_dtypes_and_blocks_make_no_difference(
    dtypes: tuple[torch.dtype, torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of either generation."""
    generator = np.random.default_rng(1)
    before, after = (
        [[(int(s), int(t)) for s, t in zip(*row, strict=True)] for row in rows]
        for rows in np.stack(
            [generator.integers(0, 9, (2, 50, 3)), generator.integers(1, 5, (2, 50, 3))], 2
        )
    )
    expected = by_loops(before, after)
    assert as_counter(slot_counts(tables_of(before), tables_of(after, *dtypes), 9)) == expected
    monkeypatch.setattr(slots, "_CELLS", 10)
    assert as_counter(slot_counts(tables_of(before, *dtypes), tables_of(after), 9)) == expected


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ([[3, 0, 0]] * 4, "tiers 1, 2, 3, 4: 100% kept"),
        ([[1, 0, 999], [0, 0, 0], [50, 0, 0], [0, 0, 10]], "tier 3: 100% kept; tiers 1, 4: 99.9%"),
        ([[0, 9, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]], "tier 1: 90.0% moved, 10.0% replaced"),
        ([[99999, 0, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]], "tier 1: 99.9% kept"),
    ],
)
def test_short_form_takes_like_tiers_together(counts: list[list[int]], text: str) -> None:
    """Only all is 100%; a tier without slots is not named."""
    assert short_form(np.array(counts)).startswith(text)


def test_share_never_rounds_to_all_or_nothing() -> None:
    """But where it is."""
    assert [share(n, 10_000) for n in (0, 1, 5_000, 9_999, 10_000)] == [
        *("0%", "0.1%", "50.0%", "99.9%", "100%")
    ]
