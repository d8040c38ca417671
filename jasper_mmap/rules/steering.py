"""The steering variant of a position: a pure function of (seed, split, epoch, position)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .permutation import permute


def draw_variants(
    positions: NDArray[np.int64],
    n: int,
    probabilities: tuple[float, ...],
    *,
    seed: int,
    split: str,
    epoch: int,
) -> NDArray[np.int64]:
    """Return the variant numbers [B] of `positions` [B] in a split of n.

    The draw is stratified: a keyed permutation ranks the positions, and u = (r + 0.5) / n of rank r
    is compared with the cumulative probabilities. So each variant's share of the split differs from
    its probability by less than one sample, and a position keeps its variant for the whole epoch.
    """
    bounds = np.cumsum(np.asarray(probabilities, dtype=np.float64))
    bounds /= bounds[-1]  # a last variant of probability 0 must not get the rounding error
    # Rounded, since of two bounds at a half one could go up and the other down, and the share
    # between them would be off by a whole sample.
    first_ranks = np.ceil(np.round(bounds[:-1] * n, 6) - 0.5)
    ranks = permute(positions, n, "steering", seed, split, epoch)
    return np.searchsorted(first_ranks, ranks, side="right").astype(np.int64)
