"""Integers of any width as int64. torch has hardly any operator for the unsigned ones beyond uint8,
so they are read as the signed ones of their width."""

from __future__ import annotations

from typing import Final

import torch

SIGNED: Final = {
    torch.uint16: torch.int16,
    torch.uint32: torch.int32,
    torch.uint64: torch.int64,
}


def as_int64(numbers: torch.Tensor) -> torch.Tensor:
    """`numbers` (those of uint64 below 2**63) as int64 where they lie; no copy if they are wide
    enough already."""
    signed = SIGNED.get(numbers.dtype, numbers.dtype)
    wide = numbers.view(signed).to(torch.int64)
    if numbers.dtype in (torch.uint16, torch.uint32):
        wide.bitwise_and_((1 << 8 * signed.itemsize) - 1)
    return wide
