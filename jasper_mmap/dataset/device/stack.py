"""All tables of embeddings as one, so that a batch reads all of its embeddings in a single pass.

Row 0 is zeros; the rows of the tables follow. Files are joined by mapping them at chosen addresses
of one reserved range, whole rows apart; the rows in between are never read.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch

from ...files.atomic import storage_errors
from ...files.mapping import HUGE_PAGE, LIBC, MAP_FIXED, MAP_NORESERVE, Bytes, Region, map_at
from ...files.regular_files import open_regular
from ...files.safetensors import ALIGNMENT
from ...files.torch_modes import plain_tensors
from ...rules.schema import STEERING


@dataclass(frozen=True)
class Stack:
    """`table` [rows,D], in which a joined table begins at row `first[name]`; row 0 is zeros."""

    table: torch.Tensor
    first: Mapping[str, int]
    parts: Mapping[str, torch.Tensor]
    """The joined tables themselves; mapped ones have separate storages, since saving or pickling a
    tensor takes its whole storage."""
    steering: torch.Tensor
    """Where the table of each variant begins [4], beside `table`."""


def joinable(tables: Mapping[str, torch.Tensor]) -> bool:
    """Return whether the tables have the same dtype and width."""
    return len({(t.dtype, t.shape[1:]) for t in tables.values()}) == 1


def steering_begins(first: Mapping[str, int]) -> torch.Tensor:
    """The row at which the table of each variant begins [4]; the zero variant, without one: 0."""
    return torch.tensor([first[name] if name else 0 for name in STEERING], device="cpu")


@plain_tensors
def map_stacked(
    paths: Mapping[str, Path], like: Mapping[str, torch.Tensor], *, huge: bool = False
) -> Stack | None:
    """Join the tensors of safetensors files with one tensor each; `like` has them mapped.

    Returns None if that is impossible: different dtypes or widths, data that does not begin at
    `ALIGNMENT`, a system other than Linux, or one that refuses the mapping.
    """
    if (
        not sys.platform.startswith("linux")
        or not joinable(like)
        or any(t.numel() == 0 for t in like.values())
        or any(_data_begin(path) != ALIGNMENT for path in paths.values())
        or ALIGNMENT % mmap.PAGESIZE
    ):
        return None
    # Whole rows apart, and so that the files' 2 MB blocks are aligned to 2 MB in memory.
    some = next(iter(like.values()))
    row_bytes = some[0].nbytes
    step = math.lcm(HUGE_PAGE, row_bytes)
    lengths = [-(-t.nbytes // step) * step for t in like.values()]
    *offsets, end = accumulate(lengths, initial=step)
    region = _Range.reserve(end)
    if region is None or not all(
        region.map_data(paths[name], like[name].nbytes, offset, huge)
        for name, offset in zip(like, offsets, strict=True)
    ):
        return None
    begins = dict(zip(like, offsets, strict=True))
    table = torch.frombuffer(region.buffer(0, end), dtype=some.dtype).view(-1, *some.shape[1:])
    parts = {
        name: torch.frombuffer(region.buffer(begins[name], t.nbytes), dtype=t.dtype).view_as(t)
        for name, t in like.items()
    }
    first = {name: begin // row_bytes for name, begin in begins.items()}
    return Stack(table, first, parts, steering_begins(first))


def _data_begin(path: Path) -> int:
    with storage_errors(path, "read"), open_regular(path) as file:
        (header,) = struct.unpack("<Q", file.read(8))
    return 8 + int(header)


class _Range:
    """A range of addresses, zeros where nothing is mapped.

    It begins ALIGNMENT bytes after a 2 MB boundary, like the data in its file.
    """

    def __init__(self, region: Region) -> None:
        self._region = region
        self._begin = -(-region.begin // HUGE_PAGE) * HUGE_PAGE + ALIGNMENT - region.begin

    @classmethod
    def reserve(cls, length: int) -> _Range | None:
        length += 2 * HUGE_PAGE
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        address = map_at(None, length, flags, -1)
        return None if address is None else cls(Region(address, length))

    def map_data(self, path: Path, length: int, offset: int, huge: bool) -> bool:
        """Map the `length` bytes of data of `path` at `offset`."""
        address = self._region.begin + self._begin + offset
        flags = mmap.MAP_PRIVATE | MAP_NORESERVE | MAP_FIXED
        with storage_errors(path, "read"), open_regular(path) as file:
            if ALIGNMENT + length != os.fstat(file.fileno()).st_size:
                return False
            if map_at(address, length, flags, file.fileno(), ALIGNMENT) is None:
                return False
        # For a store larger than memory the kernel must not read 2 MB around each row.
        LIBC.madvise(address, length, mmap.MADV_HUGEPAGE if huge else mmap.MADV_RANDOM)
        return True

    def buffer(self, offset: int, length: int) -> Bytes:
        """A part of the range, as a buffer that keeps all of it mapped."""
        return self._region.bytes(self._begin + offset, length)
