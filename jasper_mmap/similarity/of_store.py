"""The lint of a store without its negatives: its questions, sources and splits."""

from __future__ import annotations

from typing import Final

import torch

from ..files.torch_modes import plain_tensors
from .cosines import Advance, Embeddings, silent
from .duplicates import Repeats, equal_rows, near_rows, near_rows_work
from .relations import Relations
from .reports.report import Rows, StoreLint

NORM_TOLERANCE: Final = 0.01
"""A norm of 1, give or take this much, is near 1."""
_EXAMPLES: Final = 10


@plain_tensors
def lint_store(
    embeddings: Embeddings,
    relations: Relations,
    *,
    near_duplicates: bool = False,
    advance: Advance = silent,
) -> StoreLint:
    """Lint the tables of a store.

    With `near_duplicates` every row is compared with every other: the time is quadratic.
    """
    twice = relations.questions_in_two_splits()
    tables = (
        ("question_embs", embeddings.questions, relations.question_of),
        ("source_embs", embeddings.sources, relations.source_of),
    )
    norms = (embeddings.question_norms, embeddings.source_norms)
    scales = (embeddings.question_scales, embeddings.source_scales)
    questions, sources = (
        _rows(
            table,
            norm,
            equal_rows(table, advance, name),
            near_rows(table, scale, advance, name) if near_duplicates else None,
            used,
        )
        for (name, table, used), norm, scale in zip(tables, norms, scales, strict=True)
    )
    return StoreLint(
        questions=questions,
        sources=sources,
        pairs=len(relations.question_of),
        splits=relations.pairs_by_split(),
        pairs_in_no_split=int((relations.marks == 0).sum()),
        questions_in_two_splits=len(twice),
        question_examples=tuple(twice[:_EXAMPLES].tolist()),
    )


def store_work(embeddings: Embeddings, *, near_duplicates: bool) -> int:
    """What `lint_store` advances by in total, the norms apart."""
    tables = (embeddings.questions, embeddings.sources)
    near = sum(near_rows_work(len(table)) for table in tables) if near_duplicates else 0
    return sum(table.nbytes for table in tables) + near


def _rows(
    table: torch.Tensor,
    norms: torch.Tensor,
    equal: Repeats,
    near: Repeats | None,
    used: torch.Tensor,
) -> Rows:
    sound = norms[norms > 0]
    unused = torch.ones(len(table), dtype=torch.bool, device="cpu")
    unused[used] = False
    return Rows(
        count=len(table),
        zero=int((norms == 0).sum()),
        nonfinite=int(norms.isnan().sum()),
        far_from_one=int(((sound - 1).abs() > NORM_TOLERANCE).sum()),
        norms=(float(sound.min()), float(sound.max())) if len(sound) else None,
        equal=equal.count,
        equal_examples=equal.examples,
        near=None if near is None else near.count,
        near_examples=() if near is None else near.examples,
        unused=int(unused.sum()),
    )
