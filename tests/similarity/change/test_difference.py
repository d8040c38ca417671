"""The comparison of two generations: similarities, and the rows that changed most."""

import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from jasper_mmap.progress import Progress
from jasper_mmap.similarity.change import difference as module
from jasper_mmap.similarity.change import slots as slots_module
from jasper_mmap.similarity.change.difference import Difference, difference
from jasper_mmap.store.folder import Store
from tests.similarity.slow import Slow

CLOSE = 6e-4  # of a median from bins 0.001 wide


def compared(store: Path, change: Callable[[torch.Tensor, torch.Tensor], None]) -> Difference:
    """Return what changed when `change` was done to negatives and tiers."""
    opened = Store(store)
    before = opened.generation()[1].tables
    after = {name: table.clone() for name, table in before.items()}
    change(after["hard_negatives"], after["negative_tiers"])
    return difference(opened, before, after, Progress(None))


def test_equal_generations_differ_in_nothing(demo_store: Path) -> None:
    """Whatever the order of slots is: tiers go with their negatives."""

    def reverse(negatives: torch.Tensor, tiers: torch.Tensor) -> None:
        negatives.copy_(negatives.flip(1))
        tiers.copy_(tiers.flip(1))

    result = compared(demo_store, reverse)
    assert (result.rows, result.unchanged_rows, result.changed_most) == (500, 500, ())
    assert all(tier.kept == tier.slots_before == tier.slots_after for tier in result.tiers)
    assert result.lint_before.margin_false == result.lint_after.margin_false


def test_rows_that_changed_most_come_first(
    store_named: Callable[[str], Path],
    folder_named: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By slots replaced, then moved, then by the similarity; medians and means as loops give."""
    slow = Slow(folder_named("plain"))
    n_sources = len(slow.oracle.tables["source_embs"])
    new_rows: dict[int, list[int]] = {}

    def change(negatives: torch.Tensor, tiers: torch.Tensor) -> None:
        for pair, slots in ((7, 3), (50, 5), (250, 4), (12, 3)):
            spare = [s for s in range(n_sources) if s not in negatives[pair].tolist()]
            negatives[pair, :slots] = torch.tensor(spare[:slots])
            new_rows[pair] = negatives[pair].tolist()
        tiers[12, 5] = tiers[12, 5] % 4 + 1
        for pair in (30, 31):  # of which most was moved, but nothing replaced
            tiers[pair, :3] = tiers[pair, :3] % 4 + 1

    monkeypatch.setattr(module, "MOST_ROWS", 3)
    monkeypatch.setattr(slots_module, "_CELLS", 12 * 100)  # in three blocks
    result = compared(store_named("plain"), change)
    most = [(r.pair, r.replaced, r.moved) for r in result.changed_most]
    assert most == [(50, 5, 0), (250, 4, 0), (12, 3, 1)]
    assert result.unchanged_rows == result.rows - 6
    for row in result.changed_most:
        question = slow.pairs[row.pair][0]
        old = [slow.similarity(question, s) for s in slow.oracle.hard_negatives[row.pair]]
        new = [slow.similarity(question, s) for s in new_rows[row.pair]]
        assert row.similarity_before == pytest.approx(statistics.mean(old), abs=1e-6)
        assert row.similarity_after == pytest.approx(statistics.mean(new), abs=1e-6)
    for tier in result.tiers:
        similarities = [
            slow.similarity(slow.pairs[pair][0], negative)
            for pair, row_ in enumerate(slow.oracle.hard_negatives)
            for negative, t in zip(row_, slow.oracle.negative_tiers[pair], strict=True)
            if t == tier.tier
        ]
        assert tier.slots_before == len(similarities)
        low, high = statistics.median_low(similarities), statistics.median_high(similarities)
        assert low - CLOSE <= (tier.similarity_before or 0.0) <= high + CLOSE


def test_progress_knows_the_end_from_the_start(demo_store: Path) -> None:
    """Of both lints together: it neither goes back nor ends early."""
    opened = Store(demo_store)
    tables = opened.generation()[1].tables
    seen: list[tuple[int, int]] = []
    progress = Progress(lambda _name, done, total: seen.append((done, total)))
    difference(opened, tables, tables, progress)
    reading = seen[2:]  # the norms are read first
    assert len({total for _, total in reading}) == 1
    assert reading[-1][0] == reading[-1][1]


def test_rows_without_a_similarity_have_none() -> None:
    """And come after those of a known change with as many slots replaced."""
    known = module.RowDifference(
        pair=9, kept=0, moved=0, replaced=1, similarity_before=0.1, similarity_after=0.2
    )
    unknown = module.RowDifference(
        pair=3, kept=0, moved=0, replaced=1, similarity_before=None, similarity_after=0.9
    )
    assert sorted([unknown, known], key=module._order) == [known, unknown]
