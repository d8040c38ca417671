"""Where the steering of one pair points, in float64. Shape letters as in `schema`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...rules.names import VARIANTS, Variant
from ...rules.schema import STEERING
from ...store.folder import Store
from ...store.tables import table_tensor
from .exact import Floats, Vectors, number, rows_of


@dataclass(frozen=True, kw_only=True)
class Direction:
    """One variant of a pair's steering: its norm, and its cosine with other vectors.

    None where a vector has NaN or infinity.
    """

    variant: Variant
    norm: float | None
    question: float | None
    centroid: float | None
    source: float | None
    """The pair's own right source."""
    difference: float | None
    """Right source - question."""
    rank: int | None
    """The place of the right source, 1 to N + 1, when it and the negatives are ordered by their
    cosine with question + steering, which is what a model that does nothing would predict. The
    right source comes after negatives that are as near."""


def directions_of(
    store: Store, pair: int, question: int, source: int, cluster: int, negatives: Sequence[int]
) -> tuple[Direction, ...]:
    """The steering of a pair by variant, beside its question, right source and negatives [N]."""

    def row(name: str, number: int) -> Floats:
        return rows_of(table_tensor(store.tables[name]), [number])

    asked, right = row("question_embs", question), row("source_embs", source)
    places = {number: place for place, number in enumerate(dict.fromkeys((source, *negatives)))}
    vectors = Vectors.of(rows_of(table_tensor(store.tables["source_embs"]), list(places)))
    with np.errstate(invalid="ignore"):
        difference = right - asked
    beside = Vectors.of(np.concatenate([asked, row("centroid_embs", cluster), right, difference]))
    directions = []
    for variant, name in zip(VARIANTS, STEERING, strict=True):
        steering = row(name, pair) if name else np.zeros_like(asked)
        own = Vectors.of(steering)
        with np.errstate(invalid="ignore"):
            near = Vectors.of(asked + steering).cosines(vectors)[0]
        ahead = sum(bool(near[places[negative]] >= near[0]) for negative in negatives)
        cosines = own.cosines(beside)[0].tolist()
        directions.append(
            Direction(
                variant=variant,
                norm=number(own.norms[0]),
                question=number(cosines[0]),
                centroid=number(cosines[1]),
                source=number(cosines[2]),
                difference=number(cosines[3]),
                rank=1 + ahead if np.isfinite(near).all() else None,
            )
        )
    return tuple(directions)
