"""Which pairs and splits a question or source belongs to, looked up without an index.

Each function reads `pair_index` or a split once, in pieces. Shape letters as in `schema`.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from ...files.safetensors import chunks
from ...rules.integers import as_int64, rows_as_int64
from ...rules.names import SPLITS, Split
from ...store.folder import Store
from ...store.tables import table_tensor

Numbers = NDArray[np.int64]

QUESTION, SOURCE = 0, 1
"""The columns of `pair_index`."""


def pairs_with(store: Store, column: int, numbers: Collection[int]) -> Numbers:
    """The numbers of the pairs that have one of `numbers` in a column of `pair_index`, rising."""
    sought = np.fromiter(numbers, np.int64, len(numbers))
    begin = 0
    parts = [np.zeros(0, np.int64)]
    for piece in chunks(table_tensor(store.tables["pair_index"])):
        rows = as_int64(piece[:, column]).numpy()
        parts.append(begin + np.flatnonzero(np.isin(rows, sought)))
        begin += len(piece)
    return np.concatenate(parts)


def rows_of(store: Store, pairs: Numbers) -> Numbers:
    """(question, source) [n,2] of some pairs [n]."""
    return rows_as_int64(table_tensor(store.tables["pair_index"]), pairs)


def splits_of(store: Store, pairs: Numbers) -> dict[int, tuple[Split, ...]]:
    """The splits in which each of some pairs appears; mostly one, and none if it is unused."""
    splits: dict[int, tuple[Split, ...]] = dict.fromkeys(pairs.tolist(), ())
    for split in SPLITS:
        members: set[int] = set()
        for piece in chunks(table_tensor(store.tables[f"{split}_idx"])):
            rows = as_int64(piece).numpy()
            members.update(rows[np.isin(rows, pairs)].tolist())
        for pair in sorted(members):
            splits[pair] += (split,)
    return splits


def evaluation_only(store: Store, sources: Collection[int]) -> set[int]:
    """Those of some sources that are right for pairs of val or test, and for none of train."""
    pairs = pairs_with(store, SOURCE, sources)
    in_train: set[int] = set()
    evaluated: set[int] = set()
    splits = splits_of(store, pairs)
    for pair, (_, source) in zip(pairs.tolist(), rows_of(store, pairs).tolist(), strict=True):
        if "train" in splits[pair]:
            in_train.add(source)
        elif splits[pair]:
            evaluated.add(source)
    return evaluated - in_train
