"""How relevance, centroid distance and norms are distributed: counts in a few bins."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from ...files.torch_modes import plain_tensors
from ...rules.permutation import permute
from ...similarity.cosines import pieces, row_norms
from ...store.folder import Store
from ...store.tables import table_tensor

BINS: Final = 20
_NORM_BINS: Final = 21
"""An odd number: norms that are all alike lie in one bin, not at the edge of two."""
_MOST: Final = 200_000
"""Rows of a table that are read."""
_STEP: Final = 4096
_LEAST_HALF: Final = 0.05
"""Half the width of the picture of values that are all alike."""

Values = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Counts of values in bins of equal width from `low` to `high`."""

    rows: int
    """Rows that were read; others were not drawn."""
    of: int
    low: float
    high: float
    counts: tuple[int, ...]
    left_out: int
    """Values that are NaN or infinite."""


@plain_tensors
def histograms_of(store: Store, seed: int) -> dict[str, Histogram]:
    """Return those of relevance, of centroid distance, and of the norms of questions and sources,
    which have the same bins. Of a long table a sample of 200,000 rows is read."""
    tables = {name: table_tensor(table) for name, table in store.tables.items()}
    relevance = _drawn(tables["pair_relevance"], seed)
    distance = _drawn(tables["centroid_distances"], seed)
    norms = {kind: _norms(tables[f"{kind}_embs"], seed) for kind in ("question", "source")}
    around = _around(np.concatenate([*norms.values()]))
    return {
        "relevance": _histogram(relevance, len(tables["pair_relevance"]), 0.0, 1.0),
        "centroid_distance": _histogram(
            distance, len(tables["centroid_distances"]), *_tenths(distance)
        ),
        **{
            f"{kind}_norm": _histogram(values, len(tables[f"{kind}_embs"]), *around, _NORM_BINS)
            for kind, values in norms.items()
        },
    }


def _rows(n: int, seed: int) -> torch.Tensor | None:
    """The rows to read of `n`; None: all."""
    if n <= _MOST:
        return None
    numbers = permute(np.arange(_MOST, dtype=np.int64), n, "report", seed)
    return torch.from_numpy(np.sort(numbers))


def _drawn(column: torch.Tensor, seed: int) -> Values:
    rows = _rows(len(column), seed)
    values: Values = (column if rows is None else column[rows]).to(torch.float64).numpy()
    return values


def _norms(table: torch.Tensor, seed: int) -> Values:
    rows = _rows(len(table), seed)
    if rows is None:
        norms = row_norms(table)
    else:
        norms = torch.cat([row_norms(table[piece]) for piece in pieces(rows, _STEP)])
    values: Values = norms.numpy()
    return values


def _histogram(values: Values, of: int, low: float, high: float, bins: int = BINS) -> Histogram:
    finite = values[np.isfinite(values)]
    counts, _ = np.histogram(finite, bins, (low, high))
    return Histogram(
        rows=len(values),
        of=of,
        low=low,
        high=high,
        counts=tuple(counts.tolist()),
        left_out=len(values) - len(finite),
    )


def _tenths(values: Values) -> tuple[float, float]:
    """The range of the values, rounded outwards to tenths."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return 0.0, 2.0
    low = math.floor(10 * finite.min()) / 10
    return low, max(low + 0.1, math.ceil(10 * finite.max()) / 10)


def _around(values: Values) -> tuple[float, float]:
    """The range of the values, or one around values that are all alike."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    half = max((high - low) / 2, _LEAST_HALF)
    return (low + high) / 2 - half, (low + high) / 2 + half
