"""The tables of a dataset as attributes, declared for readers and type checkers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch

from ..errors import UnknownAttributeError
from ..rules.arguments import nearest
from ..rules.schema import ARTIFACTS
from ..store.tables import Ragged
from .split_reader import SPLIT_INDICES, SplitReader

NAMES: Final = (*ARTIFACTS, SPLIT_INDICES)


class Artifacts:
    """Each artifact under its own name; `schema.ARTIFACTS` has the kinds and shapes.

    They are only declared: a table is looked up at each access, until the dataset is closed.
    """

    _reader: SplitReader

    question_embs: torch.Tensor
    source_embs: torch.Tensor
    keyword_embs: torch.Tensor
    centroid_embs: torch.Tensor
    pair_index: torch.Tensor
    pair_cluster_id: torch.Tensor
    pair_relevance: torch.Tensor
    pair_keyword_ids: Ragged
    """`pair_keyword_ids[i]` is the 1-D int64 tensor of pair i."""
    steering_centroid: torch.Tensor
    steering_keyword_weighted: torch.Tensor
    steering_residual: torch.Tensor
    centroid_distances: torch.Tensor
    hard_negatives: torch.Tensor
    negative_tiers: torch.Tensor
    train_idx: torch.Tensor
    val_idx: torch.Tensor
    test_idx: torch.Tensor
    split_indices: torch.Tensor
    """The pair numbers of the dataset's own split."""

    def _attribute(self, name: str) -> Any:
        reader = self.__dict__.get("_reader")
        if name in NAMES:
            return self._reader.table(name)
        if hasattr(type(self), name) and reader is not None:
            _ = reader.served  # reached if a property raised ClosedError: raise it again
        hint = nearest(name, dir(self))
        raise UnknownAttributeError(f"{type(self).__name__} has no attribute {name!r}{hint}")

    if not TYPE_CHECKING:  # else type checkers would accept any attribute
        __getattr__ = _attribute

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *NAMES]
