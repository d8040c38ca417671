"""The three steering tables as one, so that a batch reads its steering in a single pass.

Row 0 is zeros, the zero variant's; each table's rows begin somewhere behind it. Mapped files cannot
simply be joined, but they can be mapped at chosen addresses of one reserved range, at distances
that are whole rows; the rows between are addresses that nothing reads.
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
from itertools import accumulate
from pathlib import Path
from typing import Final

import torch

from .mapping import MAP_NORESERVE
from .tensorfile import ALIGNMENT

_MAP_FIXED: Final = 0x10
_HUGE: Final = 2 << 20


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


def map_stacked(
    paths: Sequence[Path], like: Sequence[torch.Tensor], *, huge: bool = False
) -> Stack | None:
    """Join the single tensors of safetensors files, `like` of which are mapped already.

    None where it cannot be done: different dtypes or widths, data that does not begin where this
    package's writer lets it begin, a system other than Linux, or one that refuses the mapping.
    """
    dtype, width = like[0].dtype, like[0].shape[1:]
    if (
        not sys.platform.startswith("linux")
        or any(t.dtype != dtype or t.shape[1:] != width or t.numel() == 0 for t in like)
        or any(_data_begin(path) != ALIGNMENT for path in paths)
        or ALIGNMENT % mmap.PAGESIZE
    ):
        return None
    # Whole rows apart, and each where its file's 2 MB blocks are 2 MB blocks of memory.
    row_bytes = like[0][0].nbytes
    step = math.lcm(_HUGE, row_bytes)
    offsets = list(accumulate((-(-t.nbytes // step) * step for t in like), initial=step))
    region = _Region.reserve(offsets[-1])
    if region is None or not all(
        region.map_data(path, tensor.nbytes, offset, huge)
        for path, tensor, offset in zip(paths, like, offsets, strict=False)
    ):
        return None
    table = torch.frombuffer(region.buffer(), dtype=dtype).view(-1, *width)
    return Stack(table, torch.tensor([0, *(o // row_bytes for o in offsets[:-1])]))


def _data_begin(path: Path) -> int:
    with path.open("rb") as file:
        (header,) = struct.unpack("<Q", file.read(8))
    return 8 + int(header)


class _Region:
    """A range of addresses, zeros where nothing was mapped; unmapped with its last user.

    It begins ALIGNMENT bytes behind a 2 MB boundary, as data does in its file.
    """

    def __init__(self, address: int, length: int) -> None:
        self._length = length
        self._begin = -(-address // _HUGE) * _HUGE + ALIGNMENT
        self._unmap = weakref.finalize(self, _LIBC.munmap, address, length + 2 * _HUGE)
        self._unmap.atexit = False

    @classmethod
    def reserve(cls, length: int) -> _Region | None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        address = _map(None, length + 2 * _HUGE, flags, -1, 0)
        return None if address is None else cls(address, length)

    def map_data(self, path: Path, length: int, offset: int, huge: bool) -> bool:
        """Map the `length` bytes of data of `path` at `offset`."""
        address = self._begin + offset
        flags = mmap.MAP_PRIVATE | MAP_NORESERVE | _MAP_FIXED
        with path.open("rb") as file:
            if ALIGNMENT + length != os.fstat(file.fileno()).st_size:
                return False
            if _map(address, length, flags, file.fileno(), ALIGNMENT) is None:
                return False
        if huge:
            _LIBC.madvise(address, length, mmap.MADV_HUGEPAGE)
        return True

    def buffer(self) -> ctypes.Array[ctypes.c_char]:
        """The whole range as a buffer that keeps it mapped."""
        buffer = (ctypes.c_char * self._length).from_address(self._begin)
        buffer.region = self  # type: ignore[attr-defined]
        return buffer


def _map(address: int | None, length: int, flags: int, fd: int, offset: int) -> int | None:
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    mapped: int | None = _LIBC.mmap(address, length, protection, flags, fd, offset)
    return None if mapped == ctypes.c_void_p(-1).value else mapped


_LIBC = ctypes.CDLL(None)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
_LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_LIBC.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
