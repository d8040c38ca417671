"""One source of a store: where it is right, where it is a negative, and what lies near it.

Computed in float64, reading the tables of sources and negatives once, in blocks. Shape letters as
in `schema`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from ...files.safetensors import CHUNK_BYTES
from ...progress import Progress
from ...rules.integers import as_int64
from ...rules.names import Split
from ...rules.schema import TIERS
from ...store.folder import Store
from ...store.tables import table_tensor
from .exact import Floats, Vectors, number, vectors_of
from .known import SOURCE, Numbers, evaluation_only, pairs_with, splits_of
from .known import rows_of as pairs_of
from .pair import check_row, right_sources

MOST_LISTED: Final = 5
"""Rows and sources that are listed as the nearest ones."""


@dataclass(frozen=True, kw_only=True)
class Right:
    """A pair whose right source it is."""

    pair: int
    splits: tuple[Split, ...]
    question: int
    similarity: float | None
    """Cosine of question and source, None where one has NaN or infinity."""


@dataclass(frozen=True, kw_only=True)
class AsNegative:
    """A slot of negatives that holds it."""

    pair: int
    splits: tuple[Split, ...]
    question: int
    tier: int
    similarity: float | None
    own_similarity: float | None
    """That of the pair's own right source."""
    right: bool
    """Whether it is a right source of the question."""


@dataclass(frozen=True, kw_only=True)
class Near:
    """Another source, and its cosine with this one."""

    source: int
    cosine: float | None


@dataclass(frozen=True, kw_only=True)
class Source:
    """A source, where it is right, and where it is a negative."""

    source: int
    norm: float | None
    evaluation_only: bool
    """Whether it is right for pairs of val or test, and for none of train."""
    right: tuple[Right, ...]
    negative_slots: dict[int, int]
    """Tier -> slots of negatives that hold it."""
    mean_slots: float
    """Slots of all tiers that a source has on average, N_p * N / N_s."""
    nearest_rows: tuple[AsNegative, ...]
    """The slots of the most similar questions, the nearest first."""
    nearest_sources: tuple[Near, ...]
    """The nearest first. A cosine of 1 is another source of the same content."""

    @property
    def questions(self) -> set[int]:
        """The questions that this mentions."""
        right = {pair.question for pair in self.right}
        return right | {row.question for row in self.nearest_rows}

    @property
    def sources(self) -> set[int]:
        """The sources that this mentions."""
        return {self.source, *(near.source for near in self.nearest_sources)}


def source_of(
    store: Store, tables: Mapping[str, torch.Tensor], source: int, progress: Progress
) -> Source:
    """Return a source of a store; `tables` are negatives and tiers [N_p,N] of a generation.

    Raises `IndexRangeError` unless there is such a source.
    """
    sizes = store.negatives_sizes
    check_row("source", source, sizes["N_s"])
    sources = table_tensor(store.tables["source_embs"])
    vector = vectors_of(sources, [source])
    progress.total = sum(table.nbytes for table in tables.values()) + sources.nbytes
    pairs = pairs_with(store, SOURCE, [source])
    splits = splits_of(store, pairs)
    questions = pairs_of(store, pairs)[:, 0]
    at, tiers = _slots(tables, source, progress)
    return Source(
        source=source,
        norm=number(vector.norms[0]),
        evaluation_only=bool(evaluation_only(store, [source])),
        right=tuple(
            Right(pair=pair, splits=splits[pair], question=question, similarity=number(cosine))
            for pair, question, cosine in zip(
                pairs.tolist(),
                questions.tolist(),
                _cosines(table_tensor(store.tables["question_embs"]), questions, vector),
                strict=True,
            )
        ),
        negative_slots={tier: int((tiers == tier).sum()) for tier in TIERS},
        mean_slots=sizes["N_p"] * sizes["N"] / sizes["N_s"],
        nearest_rows=_nearest_rows(store, at, tiers, vector, source),
        nearest_sources=_nearest_sources(sources, vector, source, progress),
    )


def _slots(
    tables: Mapping[str, torch.Tensor], source: int, progress: Progress
) -> tuple[Numbers, Numbers]:
    """The pairs [n] and tiers [n] of all slots that hold a source."""
    negatives, tiers = tables["hard_negatives"], tables["negative_tiers"]
    pairs, at_tier = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for rows in _blocks(negatives):
        with progress.through("hard_negatives", negatives[rows].nbytes + tiers[rows].nbytes):
            holds = as_int64(negatives[rows]).numpy() == source
            pairs.append(rows.start + np.nonzero(holds)[0])
            at_tier.append(as_int64(tiers[rows]).numpy()[holds])
    return np.concatenate(pairs), np.concatenate(at_tier)


def _nearest_rows(
    store: Store, pairs: Numbers, tiers: Numbers, vector: Vectors, source: int
) -> tuple[AsNegative, ...]:
    """Of some slots those whose questions are the most similar to the source `vector`."""
    embeddings = table_tensor(store.tables["question_embs"])
    questions = pairs_of(store, pairs)[:, 0]
    cosines = _cosines(embeddings, questions, vector)
    first = np.argsort(-cosines, kind="stable")[:MOST_LISTED]  # NaN comes last
    splits = splits_of(store, pairs[first])
    listed = []
    for place in first.tolist():
        pair, question = int(pairs[place]), int(questions[place])
        own = pairs_of(store, pairs[[place]])[:, 1]
        right = vectors_of(table_tensor(store.tables["source_embs"]), own)
        listed.append(
            AsNegative(
                pair=pair,
                splits=splits[pair],
                question=question,
                tier=int(tiers[place]),
                similarity=number(cosines[place]),
                own_similarity=number(_cosines(embeddings, np.array([question]), right)[0]),
                right=source in right_sources(store, question),
            )
        )
    return tuple(listed)


def _nearest_sources(
    sources: torch.Tensor, vector: Vectors, source: int, progress: Progress
) -> tuple[Near, ...]:
    best: list[tuple[float, int]] = []
    for rows in _blocks(sources):
        with progress.through("source_embs", sources[rows].nbytes):
            numbers = np.arange(rows.start, min(rows.stop, len(sources)))
            cosines = _cosines(sources, numbers, vector)
            cosines[numbers == source] = np.nan
            first = np.argsort(-cosines, kind="stable")[:MOST_LISTED]
            best += [(-cosines[i], int(numbers[i])) for i in first if np.isfinite(cosines[i])]
            best = sorted(best)[:MOST_LISTED]
    return tuple(Near(source=number_, cosine=number(-cosine)) for cosine, number_ in best)


def _cosines(table: torch.Tensor, rows: Numbers, vector: Vectors) -> Floats:
    """The cosine [n] of one vector with some rows of a table, in blocks."""
    step = _rows_of_block(table)
    parts = [
        vectors_of(table, rows[begin : begin + step]).cosines(vector)[:, 0]
        for begin in range(0, len(rows), step)
    ]
    return np.concatenate([np.zeros(0), *parts])


def _rows_of_block(table: torch.Tensor) -> int:
    return max(1, CHUNK_BYTES // (8 * table.shape[1]))


def _blocks(table: torch.Tensor) -> Iterator[slice]:
    step = _rows_of_block(table)
    return (slice(begin, begin + step) for begin in range(0, len(table), step))
