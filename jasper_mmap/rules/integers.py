"""Integers of any width as int64. torch lacks most operators for unsigned types beyond uint8, so
those are read as signed integers of the same width."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

SIGNED: Final = {
    torch.uint16: torch.int16,
    torch.uint32: torch.int32,
    torch.uint64: torch.int64,
}


def as_int64(numbers: torch.Tensor) -> torch.Tensor:
    """Return `numbers` (uint64 ones below 2**63) as int64 on their device; 64-bit ones are not
    copied."""
    signed = SIGNED.get(numbers.dtype, numbers.dtype)
    wide = numbers.view(signed).to(torch.int64)
    if numbers.dtype in (torch.uint16, torch.uint32):
        wide.bitwise_and_((1 << 8 * signed.itemsize) - 1)
    return wide


def rows_as_int64(table: torch.Tensor, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return some `rows` [n] of an integer table on the CPU, whatever its width."""
    signed = SIGNED.get(table.dtype, table.dtype)
    taken = table.view(signed).index_select(0, torch.from_numpy(rows)).view(table.dtype)
    return as_int64(taken).numpy()
