"""Which sources are right for which questions, in which splits and clusters: integers alone.

Shape letters as in `schema`; `b` pairs of a block, `m` right sources of theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from ..rules.integers import as_int64
from ..rules.names import SPLITS
from ..store.folder import Store
from ..store.tables import table_tensor

BITS: Final = {split: 1 << place for place, split in enumerate(SPLITS)}
"""The bit of each split in the marks of a pair."""
MARKS: Final = 1 << len(SPLITS)
"""Number of different marks."""
_CELLS: Final = 1 << 26
"""Combinations of source and cluster for which there is a table."""


def at(table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return `table[index]` for int64 numbers of rows, which takes a third of the time so."""
    flat = table.index_select(0, index.flatten())
    return flat.view(*index.shape, *table.shape[1:])


def stable_order(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return `np.argsort(keys, kind="stable")`, in a seventh of the time.

    numpy sorts values by vector instructions. Their size times their number must be an int64.
    """
    order: NDArray[np.int64] = np.sort(keys * len(keys) + np.arange(len(keys))) % len(keys)
    return order


def marks_by_split() -> dict[str, NDArray[np.bool_]]:
    """Return which marks belong to each split, and under `all` every one."""
    marks = np.arange(MARKS)
    named: dict[str, NDArray[np.bool_]] = {s: marks & bit != 0 for s, bit in BITS.items()}
    return {"all": marks >= 0, **named}


@dataclass(frozen=True)
class RightSources:
    """The right sources of some pairs' questions: entry by entry, those of a pair together."""

    row: torch.Tensor
    """[m] The pair's place in the block."""
    source: torch.Tensor
    """[m]"""
    pair: torch.Tensor
    """[m] A pair of that question and that source."""


class Relations:
    """The integer tables of a store, looked up by block. All numbers are checked."""

    def __init__(self, store: Store) -> None:
        tables = {name: table_tensor(table) for name, table in store.tables.items()}
        sizes = store.manifest.sizes
        questions, sources = as_int64(tables["pair_index"]).unbind(1)
        self.question_of, self.source_of = questions.contiguous(), sources.contiguous()
        self.cluster_of = as_int64(tables["pair_cluster_id"])
        self.marks = _marks(tables, sizes["N_p"])
        by_source = torch.from_numpy(stable_order(self.source_of.numpy()))
        by_both = torch.from_numpy(stable_order(at(self.question_of, by_source).numpy()))
        self.by_question = at(by_source, by_both)
        """[N_p] The pairs, ordered by question, those of a question by source."""
        owners, right = (at(of, self.by_question) for of in (self.question_of, self.source_of))
        new = torch.ones(sizes["N_p"], dtype=torch.bool, device="cpu")
        new[1:] = (owners.diff() != 0) | (right.diff() != 0)
        # Each (question, source) once, in order.
        self._right, self._right_pair = right[new], self.by_question[new]
        first = np.searchsorted(owners[new].numpy(), np.arange(sizes["N_q"] + 1))
        self._first = torch.from_numpy(first)
        self.right_counts = self._first.diff()
        """[N_q] How many right sources a question has."""
        self._clusters = _Clusters(self.source_of, self.cluster_of, sizes)
        self.evaluation_only = self._evaluation_only(sizes["N_s"])
        """[N_s] Right for a pair of val or test, and for none of train."""

    def pairs_by_split(self) -> dict[str, int]:
        """The pairs of each split, repeated ones once."""
        return {split: int((self.marks & bit != 0).sum()) for split, bit in BITS.items()}

    def questions_in_two_splits(self) -> torch.Tensor:
        """The numbers of the questions with pairs in more than one split, ascending."""
        splits = torch.zeros(len(self.right_counts), dtype=torch.int64, device="cpu")
        for bit in BITS.values():
            has = torch.zeros(len(splits), dtype=torch.bool, device="cpu")
            has[self.question_of[self.marks & bit != 0]] = True
            splits += has
        return (splits > 1).nonzero()[:, 0]

    def right_sources(self, questions: torch.Tensor) -> RightSources:
        """Return the right sources of the questions [b] of some pairs."""
        counts = at(self.right_counts, questions)
        row = torch.repeat_interleave(counts)
        shift = at(self._first, questions) - counts.cumsum(0) + counts
        place = at(shift, row).add_(torch.arange(len(row), device="cpu"))
        return RightSources(row, at(self._right, place), at(self._right_pair, place))

    def in_cluster(self, sources: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
        """Return whether each source [b,N] is in the cluster of its pair [b]; the clusters of a
        source are those of the pairs for which it is right."""
        return self._clusters.have(sources, at(self.cluster_of, pairs).unsqueeze(1))

    @property
    def clustered(self) -> torch.Tensor:
        """[N_s] In any cluster."""
        return self._clusters.has

    def _evaluation_only(self, n_sources: int) -> torch.Tensor:
        right = torch.zeros((2, n_sources), dtype=torch.bool, device="cpu")
        trains = (self.marks & BITS["train"]) != 0
        evaluates = (self.marks & (BITS["val"] | BITS["test"])) != 0
        for place, chosen in enumerate((trains, evaluates)):
            right[place, self.source_of[chosen]] = True
        return right[1] & ~right[0]


class _Clusters:
    """The clusters of sources: a table of all combinations, or where that is large, the keys of
    those that occur."""

    def __init__(
        self, sources: torch.Tensor, clusters: torch.Tensor, sizes: dict[str, int]
    ) -> None:
        self._n = sizes["N_c"]
        keys = sources * self._n + clusters
        self.has = torch.zeros(sizes["N_s"], dtype=torch.bool, device="cpu")
        self.has[sources] = True
        self._table: torch.Tensor | None = None
        self._keys = torch.empty(0, dtype=torch.int64, device="cpu")
        if sizes["N_s"] * self._n <= _CELLS:
            self._table = torch.zeros(sizes["N_s"] * self._n, dtype=torch.bool, device="cpu")
            self._table[keys] = True
        else:
            self._keys = torch.from_numpy(np.unique(keys.numpy()))

    def have(self, sources: torch.Tensor, clusters: torch.Tensor) -> torch.Tensor:
        """Return whether each source [b,N] is in the cluster [b,1] of its row."""
        keys = sources * self._n + clusters
        if self._table is not None:
            return at(self._table, keys)
        places = torch.searchsorted(self._keys, keys).clamp_(max=len(self._keys) - 1)
        return at(self._keys, places) == keys


def _marks(tables: dict[str, torch.Tensor], n_pairs: int) -> torch.Tensor:
    """The splits of each pair [N_p] as `BITS`, int64."""
    marks = torch.zeros(n_pairs, dtype=torch.int64, device="cpu")
    for split, bit in BITS.items():
        marks[as_int64(tables[f"{split}_idx"])] |= bit
    return marks
