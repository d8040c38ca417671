"""One question of a store: its right sources, and where they stand among its own negatives.

Computed in float64. Shape letters as in `schema`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ...rules.integers import rows_as_int64
from ...rules.names import Split
from ...store.folder import Store
from ...store.tables import table_tensor
from .exact import number
from .known import QUESTION, pairs_with, rows_of, splits_of
from .pair import Compared, check_row


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A right source of the question that is a negative in one of its rows."""

    pair: int
    tier: int


@dataclass(frozen=True, kw_only=True)
class OfQuestion:
    """One pair of the question."""

    pair: int
    splits: tuple[Split, ...]
    source: int
    similarity: float | None
    cluster: int
    relevance: float | None
    negative_in: tuple[Standing, ...]
    """Where its source is a negative of this question, in this pair's row or another."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question and its pairs; a similarity is the cosine of question and source."""

    question: int
    lowest_right: float | None
    """The lowest similarity among its right sources; None without a pair."""
    lowest_right_source: int | None
    pairs: tuple[OfQuestion, ...]
    zero_vectors: tuple[str, ...]
    """As in `pair.Pair`."""

    @property
    def questions(self) -> set[int]:
        """The questions that this mentions."""
        return {self.question}

    @property
    def sources(self) -> set[int]:
        """The sources that this mentions."""
        return {pair.source for pair in self.pairs}


def question_of(store: Store, tables: Mapping[str, torch.Tensor], question: int) -> Question:
    """Return a question of a store; `tables` are negatives and tiers [N_p,N] of a generation.

    Raises `IndexRangeError` unless there is such a question.
    """
    check_row("question", question, store.manifest.sizes["N_q"])
    pairs = pairs_with(store, QUESTION, [question])
    sources = rows_of(store, pairs)[:, 1].tolist()
    negatives = rows_as_int64(tables["hard_negatives"], pairs).tolist()
    tiers = rows_as_int64(tables["negative_tiers"], pairs).tolist()
    clusters = rows_as_int64(table_tensor(store.tables["pair_cluster_id"]), pairs).tolist()
    relevance = table_tensor(store.tables["pair_relevance"])
    splits = splits_of(store, pairs)
    compared = Compared.of(store, question, sources)
    lowest = compared.lowest(compared.sources) if sources else None
    standings: dict[int, list[Standing]] = {source: [] for source in sources}
    for pair, row, row_tiers in zip(pairs.tolist(), negatives, tiers, strict=True):
        for negative, tier in zip(row, row_tiers, strict=True):
            if negative in standings:
                standings[negative].append(Standing(pair=pair, tier=tier))
    return Question(
        question=question,
        lowest_right=None if lowest is None else number(compared.cosine[lowest]),
        lowest_right_source=lowest,
        pairs=tuple(
            OfQuestion(
                pair=pair,
                splits=splits[pair],
                source=source,
                similarity=number(compared.cosine[source]),
                cluster=cluster,
                relevance=number(relevance[pair].item()),
                negative_in=tuple(standings[source]),
            )
            for pair, source, cluster in zip(pairs.tolist(), sources, clusters, strict=True)
        ),
        zero_vectors=compared.zero_vectors,
    )
