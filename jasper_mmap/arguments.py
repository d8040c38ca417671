"""What callers pass, checked: each function returns the value in its plain form or raises."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from .errors import UnknownSplitError, UsageError
from .schema import SPLITS

LARGEST: Final = 2**63 - 1
"""Of an integer argument: they are kept in 64 bits."""


def integer(name: str, value: Any, low: int = 0, high: int = LARGEST) -> int:
    """`value` as an int from `low` to `high`, or `UsageError` naming the argument."""
    try:
        number = operator.index(value)
    except TypeError:
        raise UsageError(f"{name} must be an integer, not {value!r:.100}") from None
    if not low <= number <= high:
        bounds = f">= {low}" if number < low else f"<= {high}"
        raise UsageError(f"{name} must be an integer {bounds}, not {number}")
    return number


def split_name(split: Any) -> str:
    """The name of a split, or `UnknownSplitError` with the nearest one."""
    if isinstance(split, str) and split in SPLITS:
        return split
    (nearest,) = difflib.get_close_matches(str(split), SPLITS, n=1, cutoff=0.0)
    raise UnknownSplitError(
        f"Split file not found: there is no split {split!r:.100}. The splits are"
        f" {', '.join(SPLITS)}; did you mean {nearest!r}?"
    )


def positions(indices: Sequence[int] | ArrayLike | torch.Tensor) -> NDArray[np.int64]:
    """Positions in a split [B], or `UsageError`; whether they lie in it is not checked."""
    found = np.asarray(indices)
    if found.size == 0:
        return np.empty(0, dtype=np.int64)
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise UsageError(f"positions are a list of integers, not {indices!r:.100}")
    return found.astype(np.int64)
