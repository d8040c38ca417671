"""Checks of arguments: each function returns the value in its plain form or raises."""

from __future__ import annotations

import difflib
import math
import operator
import os
import threading
from array import array
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..errors import IndexRangeError, UnknownSplitError, UsageError
from .names import SPLITS, VARIANTS, Split, Variant

LARGEST: Final = 2**63 - 1
"""Limit of an integer argument: they are stored in 64 bits."""


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


def number(name: str, value: Any, low: float, high: float) -> float:
    """`value` as a float from `low` to `high`, or `UsageError` naming the argument."""
    try:
        result = math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError, OverflowError):
        result = math.nan
    if not low <= result <= high:
        raise UsageError(f"{name} must be a number from {low:g} to {high:g}, not {value!r:.100}")
    return result


def seconds(name: str, value: Any) -> float:
    """`value` as a valid timeout, or `UsageError` naming the argument."""
    return number(name, value, 0.0, threading.TIMEOUT_MAX)


def text(name: str, value: Any) -> str:
    """`value` itself if it is a string, or `UsageError` naming the argument."""
    if isinstance(value, str):
        return value
    raise UsageError(f"{name} must be a string, not {value!r:.100}")


def seed(value: Any) -> int:
    """A seed in the range of torch's generators, or `UsageError`."""
    return integer("seed", value, low=-(2**63), high=2**64 - 1)


def folder(name: str, path: Any) -> Path:
    """An absolute path, or `UsageError` naming the argument."""
    if isinstance(path, str | os.PathLike) and isinstance(os.fspath(path), str):
        return Path(path).absolute()
    raise UsageError(f"{name} must be a path (str or pathlib.Path), not {path!r:.100}")


def split_name(split: Any) -> Split:
    """The name of a split, or `UnknownSplitError` that suggests the nearest one."""
    if isinstance(split, str) and split in SPLITS:
        return split
    hint = nearest(split, SPLITS, cutoff=0.0) if isinstance(split, str) else "."
    raise UnknownSplitError(
        f"Split file not found: there is no split {split!r:.100}. The splits are"
        f" {', '.join(SPLITS)}{hint}"
    )


def nearest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """The end of a message about an unknown name: the most similar known one, if any."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    return f"; did you mean {close[0]!r}?" if close else "."


def position(index: Any) -> NDArray[np.int64]:
    """One position in a split as an array [1], or `UsageError`."""
    if isinstance(index, slice):
        raise UsageError(
            "a position must be an integer, not a slice. Use dataset.__getitems__(range(...)) to"
            " read several, or torch.utils.data.Subset(dataset, range(...)) for a part of the"
            " dataset."
        )
    return np.array([integer("a position", index, low=-(2**63))], dtype=np.int64)


def positions(indices: Sequence[int] | ArrayLike | torch.Tensor) -> NDArray[np.int64]:
    """Positions in a split [B], or `UsageError`; their range is not checked."""
    if isinstance(indices, list) and indices and type(indices[0]) is int:
        # torch's samplers give lists of int: this takes half the time.
        with suppress(TypeError, OverflowError):
            return np.frombuffer(array("q", indices), np.int64)
    try:
        result = np.asarray(indices)
    except (TypeError, ValueError, RuntimeError):  # ragged, or a tensor of another device
        result = np.empty((), dtype=object)
    if result.size == 0 and result.ndim == 1:
        return np.empty(0, dtype=np.int64)
    if result.ndim != 1 or result.dtype.kind not in "iu":
        raise UsageError(f"positions must be a list of integers, not {indices!r:.100}")
    return result.astype(np.int64)


def positions_in(indices: Any, n: int, split: Split) -> NDArray[np.int64]:
    """Positions [B] in a split of `n` pairs, `UsageError`, or `IndexRangeError`."""
    result = positions(indices)
    # A negative number is a huge one without its sign.
    if len(result) and result.view(np.uint64).max() >= n:
        wrong = result[(result < 0) | (result >= n)][0]
        raise IndexRangeError(
            f"Index {wrong} out of range: split '{split}' has {n} pairs, numbered from 0."
        )
    return result


def are_positions(index: Any) -> bool:
    """Whether `index` is several positions (a list, tuple, range, array or tensor), not one."""
    if isinstance(index, np.ndarray | torch.Tensor):
        return index.ndim > 0
    return isinstance(index, list | tuple | range)


def variant_name(variant: Any) -> Variant:
    """The name of a steering variant, or `UsageError` that suggests the nearest one."""
    if isinstance(variant, str) and variant in VARIANTS:
        return variant
    raise UsageError(
        f"unknown steering variant {variant!r:.100}: it must be one of {', '.join(VARIANTS)}, or"
        f" None for the curriculum's draw{nearest(str(variant), VARIANTS)}"
    )
