"""How evenly the sources are used as negatives."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .report import Hubness, Share

_NAMED: Final = 10
_TOP: Final = 0.01


def hubness(uses: NDArray[np.int64]) -> Hubness:
    """Return how often the sources are used, from the number of each [N_s]."""
    slots, n = int(uses.sum()), len(uses)
    order = np.argsort(-uses, kind="stable")  # of equal ones the first number
    return Hubness(
        mean=slots / n,
        most=tuple((int(source), int(uses[source])) for source in order[:_NAMED] if uses[source]),
        top=Share(int(uses[order[: math.ceil(_TOP * n)]].sum()), slots),
        never=Share(int((uses == 0).sum()), n),
    )
