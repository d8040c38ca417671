"""How cosines are distributed, and how evenly sources are used, in bounded memory.

Quantiles of any number of cosines come from a histogram of fixed bins.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from .relations import stable_order
from .reports.report import Hubness, Quantiles, Share

BINS: Final = 2000
WIDTH: Final = 2 / BINS
"""Of a bin; the bins cover -1 to 1."""
_RANKS: Final = {"p5": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95}

_NAMED: Final = 10
_TOP: Final = 0.01


class Histograms:
    """One histogram for each of some groups."""

    def __init__(self, groups: int) -> None:
        # The last bin is for NaN.
        self._counts: NDArray[np.int64] = np.zeros((groups, BINS + 1), np.int64)

    def add(self, groups: torch.Tensor, cosines: torch.Tensor) -> None:
        """Count cosines (any shape), each in its group (int64, same shape)."""
        bins = cosines.add(1.0).mul_(1 / WIDTH).clamp_(0, BINS - 1).nan_to_num_(BINS)
        places = (groups * (BINS + 1)).add_(bins.to(torch.int64)).flatten()
        counted = np.bincount(places.numpy(), minlength=self._counts.size)
        self._counts += counted.reshape(self._counts.shape)

    @property
    def counts(self) -> NDArray[np.int64]:
        """The histogram of each group [groups,BINS], without what is NaN."""
        return self._counts[:, :BINS]

    @property
    def nan(self) -> int:
        """How many were NaN."""
        return int(self._counts[:, BINS].sum())


def quantile(counts: NDArray[np.int64], share: float) -> float | None:
    """Return the middle of the bin of the value of rank ceil(share * n) among n, or None."""
    total = int(counts.sum())
    if not total:
        return None
    rank = max(1, math.ceil(share * total))
    place = int(np.searchsorted(counts.cumsum(), rank))
    return round((place + 0.5) * WIDTH - 1.0, 6)


def quantiles(counts: NDArray[np.int64]) -> Quantiles:
    """Return the quantiles of one histogram [BINS]."""
    values = {name: quantile(counts, share) for name, share in _RANKS.items()}
    return Quantiles(count=int(counts.sum()), **values)


def hubness(uses: NDArray[np.int64]) -> Hubness:
    """Return how often the sources are used, from the number of each [N_s]."""
    slots, n = int(uses.sum()), len(uses)
    order = stable_order(-uses)  # of equal ones the first number
    return Hubness(
        mean=slots / n,
        most=tuple((int(source), int(uses[source])) for source in order[:_NAMED] if uses[source]),
        top=Share(int(uses[order[: math.ceil(_TOP * n)]].sum()), slots),
        never=Share(int((uses == 0).sum()), n),
    )
