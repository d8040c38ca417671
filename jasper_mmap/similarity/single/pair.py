"""One pair of a store: its similarities, negatives and steering, in float64.

Shape letters as in `schema`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...errors import IndexRangeError
from ...rules.integers import rows_as_int64
from ...rules.names import Split
from ...store.folder import Store
from ...store.tables import Ragged, table_tensor
from ..duplicates import SAME_COSINE
from .directions import Direction, directions_of
from .exact import Vectors, number, vectors_of
from .known import QUESTION, evaluation_only, pairs_with, rows_of, splits_of


@dataclass(frozen=True, kw_only=True)
class Negative:
    """One hard negative of a pair. Here and below a similarity is the cosine of question and
    source, None where an embedding has NaN or infinity."""

    slot: int
    source: int
    tier: int
    similarity: float | None
    flags: tuple[str, ...]
    """Of the source: it is the pair's own (`own_source`), another right source of the question
    (`right_source`), or equal to a right one (`right_by_content`); if none of these, it may be more
    similar than the margin allows (`margin_false_negative`). And it may be right for pairs of val
    or test only, while this pair is of train (`evaluation_only`)."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A pair, its negatives [N] and its steering by variant."""

    pair: int
    question: int
    source: int
    splits: tuple[Split, ...]
    """Mostly one; empty if the pair is in none."""
    cluster: int
    keywords: tuple[int, ...]
    relevance: float | None
    centroid_distance: float | None
    similarity: float | None
    """Of the pair's own right source."""
    right_sources: tuple[int, ...]
    """All known right sources of the question, this pair's included."""
    lowest_right: float | None
    """The lowest similarity among them."""
    lowest_right_source: int
    margin: float
    limit: float | None
    """A negative above it is a margin false negative: lowest_right - margin * |lowest_right|."""
    negatives: tuple[Negative, ...]
    steering: tuple[Direction, ...]
    zero_vectors: tuple[str, ...]
    """What of this is a zero vector, whose cosine with everything is taken as 0."""

    @property
    def questions(self) -> set[int]:
        """The questions that this mentions."""
        return {self.question}

    @property
    def sources(self) -> set[int]:
        """The sources that this mentions."""
        return {self.source, *self.right_sources, *(n.source for n in self.negatives)}


def check_row(kind: str, row: int, n_rows: int) -> None:
    """Raise `IndexRangeError` unless `row` is one of `n_rows` pairs, questions or sources."""
    if not 0 <= row < n_rows:
        raise IndexRangeError(
            f"{kind} {row} out of range: there are {n_rows} {kind}s, numbered 0 to {n_rows - 1}."
        )


def pair_of(store: Store, tables: Mapping[str, torch.Tensor], pair: int, margin: float) -> Pair:
    """Return a pair of a store with the negatives and tiers [N_p,N] of a generation, `tables`.

    Raises `IndexRangeError` unless there is such a pair.
    """
    check_row("pair", pair, store.manifest.sizes["N_p"])
    at = np.array([pair])
    [[question, source]] = rows_of(store, at).tolist()
    [negatives] = rows_as_int64(tables["hard_negatives"], at).tolist()
    [tiers] = rows_as_int64(tables["negative_tiers"], at).tolist()
    [cluster] = rows_as_int64(table_tensor(store.tables["pair_cluster_id"]), at).tolist()
    splits = splits_of(store, at)[pair]
    rights = right_sources(store, question)
    compared = Compared.of(store, question, [*rights, *negatives])
    lowest = compared.lowest(rights)
    limit = compared.cosine[lowest] - margin * abs(compared.cosine[lowest])
    same = compared.equal_to(rights)
    hidden = evaluation_only(store, set(negatives)) if "train" in splits else set()

    def flags(negative: int) -> tuple[str, ...]:
        kinds = {
            "own_source": negative == source,
            "right_source": negative in rights,
            "right_by_content": negative in same,
            "margin_false_negative": compared.cosine[negative] > limit,
        }
        first = next((kind for kind, holds in kinds.items() if holds), "")
        return tuple(filter(None, (first, "evaluation_only" if negative in hidden else "")))

    keywords = store.tables["pair_keyword_ids"]
    assert isinstance(keywords, Ragged)
    centroid = vectors_of(table_tensor(store.tables["centroid_embs"]), [cluster])
    return Pair(
        pair=pair,
        question=question,
        source=source,
        splits=splits,
        cluster=cluster,
        keywords=tuple(keywords[pair].tolist()),
        relevance=_value(store, "pair_relevance", pair),
        centroid_distance=_value(store, "centroid_distances", pair),
        similarity=number(compared.cosine[source]),
        right_sources=rights,
        lowest_right=number(compared.cosine[lowest]),
        lowest_right_source=lowest,
        margin=margin,
        limit=number(limit),
        negatives=tuple(
            Negative(
                slot=slot,
                source=negative,
                tier=tier,
                similarity=number(compared.cosine[negative]),
                flags=flags(negative),
            )
            for slot, (negative, tier) in enumerate(zip(negatives, tiers, strict=True))
        ),
        steering=directions_of(store, pair, question, source, cluster, negatives),
        zero_vectors=(
            *compared.zero_vectors,
            *([f"the centroid of cluster {cluster}"] if centroid.norms[0] == 0 else []),
        ),
    )


def right_sources(store: Store, question: int) -> tuple[int, ...]:
    """The known right sources of a question, rising."""
    pairs = pairs_with(store, QUESTION, [question])
    return tuple(sorted(set(rows_of(store, pairs)[:, 1].tolist())))


def _value(store: Store, name: str, row: int) -> float | None:
    return number(table_tensor(store.tables[name])[row].item())


@dataclass(frozen=True)
class Compared:
    """A question beside some sources."""

    sources: tuple[int, ...]
    """Each once."""
    cosine: Mapping[int, float]
    """Source -> its cosine with the question; NaN where one of them is not finite."""
    zero_vectors: tuple[str, ...]
    _vectors: Vectors

    @classmethod
    def of(cls, store: Store, question: int, sources: Sequence[int]) -> Compared:
        """Compute the cosine of a question with each of `sources`."""
        distinct = tuple(dict.fromkeys(sources))
        vectors = vectors_of(table_tensor(store.tables["source_embs"]), distinct)
        asked = vectors_of(table_tensor(store.tables["question_embs"]), [question])
        cosines = asked.cosines(vectors)[0].tolist()
        zero = [f"question {question}"] if asked.norms[0] == 0 else []
        zero += [
            f"source {s}" for s, norm in zip(distinct, vectors.norms, strict=True) if norm == 0
        ]
        return cls(distinct, dict(zip(distinct, cosines, strict=True)), tuple(zero), vectors)

    def lowest(self, rights: Sequence[int]) -> int:
        """That of some sources whose cosine is lowest; one without a cosine after all others."""
        return min(rights, key=lambda s: (math.isnan(self.cosine[s]), self.cosine[s]))

    def equal_to(self, rights: Sequence[int]) -> set[int]:
        """The sources that have a cosine of at least `SAME_COSINE` with one of `rights`."""
        right = np.isin(self.sources, rights)
        among = Vectors(self._vectors.units[right], self._vectors.norms[right])
        nearest = self._vectors.cosines(among).max(axis=1)
        return {s for s, c in zip(self.sources, nearest, strict=True) if c >= SAME_COSINE}
