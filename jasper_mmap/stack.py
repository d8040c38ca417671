"""The three steering tables as one, so that a batch reads its steering in a single pass.

Row 0 is zeros, the zero variant's; each table's rows begin somewhere behind it. Mapped files cannot
simply be joined, but they can be mapped at chosen addresses of one reserved range, at distances
that are whole rows: the rows between are reserved addresses that nothing reads.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import struct
import sys
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from .mapping import MAP_NORESERVE
from .tensorfile import ALIGNMENT

_MAP_FIXED: Final = 0x10


@dataclass(frozen=True)
class Stack:
    """`table` [rows,D], in which the i-th joined table begins at row `first[i]`; row 0 is zeros."""

    table: torch.Tensor
    first: torch.Tensor
    """int64, on the table's device; `first[0]` is 0, the row of zeros."""

    def part(self, number: int, rows: int) -> torch.Tensor:
        """The joined table of that number (from 1), `rows` rows."""
        begin = int(self.first[number])
        return self.table[begin : begin + rows]


def map_stacked(paths: Sequence[Path], like: Sequence[torch.Tensor]) -> Stack | None:
    """Join the single tensors of safetensors files, `like` of which are mapped already.

    None where it cannot be done: different dtypes or widths, data that does not begin on a page, a
    system other than Linux, or one that refuses the mapping.
    """
    dtype, width = like[0].dtype, like[0].shape[1:]
    if (
        not sys.platform.startswith("linux")
        or any(t.dtype != dtype or t.shape[1:] != width or t.numel() == 0 for t in like)
        or mmap.PAGESIZE != ALIGNMENT
    ):
        return None
    row_bytes = like[0][0].nbytes
    step = math.lcm(ALIGNMENT, row_bytes)  # page addresses that are whole rows apart
    offsets, end = [], step
    for tensor in like:
        offsets.append(end)
        end += -(-tensor.nbytes // step) * step
    region = _Region.reserve(end)
    if region is None:
        return None
    for path, tensor, offset in zip(paths, like, offsets, strict=True):
        if not region.map_data(path, tensor.nbytes, offset):
            return None
    table = torch.frombuffer(region.buffer(), dtype=dtype).view(-1, *width)
    return Stack(table, torch.tensor([0, *(o // row_bytes for o in offsets)]))


class _Region:
    """A range of addresses, zeros where nothing was mapped; unmapped with its last user."""

    def __init__(self, address: int, length: int) -> None:
        self._address = address
        self._length = length
        self._unmap = weakref.finalize(self, _libc().munmap, address, length)
        self._unmap.atexit = False

    @classmethod
    def reserve(cls, length: int) -> _Region | None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        address = _map(None, length, flags, -1, 0)
        return None if address is None else cls(address, length)

    def map_data(self, path: Path, length: int, offset: int) -> bool:
        """Map the data section of `path` at `offset`; False where it does not begin on a page."""
        with path.open("rb") as file:
            (header,) = struct.unpack("<Q", os.pread(file.fileno(), 8, 0))
            begin = 8 + header
            flags = mmap.MAP_PRIVATE | MAP_NORESERVE | _MAP_FIXED
            return (
                begin % mmap.PAGESIZE == 0
                and begin + length == os.fstat(file.fileno()).st_size
                and _map(self._address + offset, length, flags, file.fileno(), begin) is not None
            )

    def buffer(self) -> ctypes.Array[ctypes.c_char]:
        """The whole range as a buffer that keeps it mapped."""
        buffer = (ctypes.c_char * self._length).from_address(self._address)
        buffer.region = self  # type: ignore[attr-defined]
        return buffer


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_long,
    ]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc


def _map(address: int | None, length: int, flags: int, fd: int, offset: int) -> int | None:
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    mapped: int | None = _libc().mmap(address, length, protection, flags, fd, offset)
    return None if mapped == ctypes.c_void_p(-1).value else mapped
