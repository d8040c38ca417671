"""The rows whose nearest negative is farthest above the right source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import torch

from ...files.torch_modes import plain_tensors
from ...progress import Progress
from ...rules.integers import as_int64
from ...similarity.cosines import Embeddings, pieces, similarities
from ...similarity.examine import drawn, of_same_questions
from ...similarity.known import KnownRight
from ...similarity.relations import Relations
from ...store.folder import Store

MOST: Final = 20
"""Rows that are listed."""
_STEP: Final = 4096
"""Pairs of a block."""


@dataclass(frozen=True, kw_only=True)
class WorstRow:
    """A pair and its most similar negative that is no known right source of the question.

    Similarities are cosines with the question.
    """

    pair: int
    question: int
    source: int
    """The pair's own right source."""
    own: float | None
    lowest_right: float
    """p: the lowest similarity among the known right sources of the question."""
    negative: int
    tier: int
    similarity: float
    """s: that of the negative."""
    above: float
    """s - p."""


@plain_tensors
def worst_rows(
    store: Store,
    tables: Mapping[str, torch.Tensor],
    *,
    sample: int | None,
    seed: int,
    progress: Progress,
) -> tuple[WorstRow, ...]:
    """Return the 20 rows of largest s - p, the largest first, of the pairs that a lint takes.

    `tables` are those of a generation [N_p,N].
    """
    search = _Search(store, tables, progress)
    best: list[WorstRow] = []
    for pairs in pieces(search.begin(sample, seed), _STEP):
        best = sorted([*best, *search.worst_of(pairs)], key=lambda r: (-r.above, r.pair))[:MOST]
    return tuple(best)


class _Search:
    """What the blocks have in common."""

    def __init__(
        self, store: Store, tables: Mapping[str, torch.Tensor], progress: Progress
    ) -> None:
        self._progress, self._tables = progress, tables
        self._embeddings = Embeddings(store, advance=progress.advance)
        self._relations = Relations(store)

    def begin(self, sample: int | None, seed: int) -> torch.Tensor:
        """Return the pairs to look at, after reading the similarities of right sources."""
        embeddings, relations = self._embeddings, self._relations
        rows = drawn(relations, sample, seed)
        needed = of_same_questions(relations, rows)
        self._row_bytes = self._tables["hard_negatives"].shape[1] * embeddings.sources[:1].nbytes
        self._progress.total += embeddings.questions.nbytes + embeddings.sources.nbytes
        self._progress.total += embeddings.own_bytes(needed) + len(rows) * self._row_bytes
        self._own = embeddings.own(needed)
        self._lowest = embeddings.lowest_right(self._own)
        self._known = KnownRight(embeddings, relations, self._own)
        return rows

    def worst_of(self, pairs: torch.Tensor) -> Iterator[WorstRow]:
        """Yield the worst of the pairs [b]."""
        hard_negatives = self._tables["hard_negatives"]
        questions, numbers = self._relations.question_of[pairs], as_int64(hard_negatives[pairs])
        cosines = similarities(self._embeddings, hard_negatives, pairs)
        by_number, by_content = self._known.among(questions, numbers, cosines)
        lowest = self._lowest[questions]
        above = cosines - lowest.unsqueeze(1)
        above.masked_fill_(by_number | by_content, -torch.inf).nan_to_num_(-torch.inf)
        most, slots = above.max(1)
        tiers = as_int64(self._tables["negative_tiers"][pairs])
        self._progress.advance("negatives", len(pairs) * self._row_bytes)
        for row in torch.argsort(most, descending=True, stable=True)[:MOST].tolist():
            if not most[row].isfinite():
                break
            pair, slot = int(pairs[row]), int(slots[row])
            s, p = float(cosines[row, slot]), float(lowest[row])
            own = float(self._own[pair])
            yield WorstRow(
                pair=pair,
                question=int(questions[row]),
                source=int(self._relations.source_of[pair]),
                own=own if own == own else None,
                lowest_right=p,
                negative=int(numbers[row, slot]),
                tier=int(tiers[row, slot]),
                similarity=s,
                above=s - p,
            )
