"""A file's bytes in memory, shared by every process that maps them.

Through libc, since Python's own `mmap` (before 3.13) keeps a descriptor for each mapping. A mapping
lives as long as any buffer over it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from typing import Final

import torch

from .torch_modes import plain_tensors

# Linux's value; the mmap module has no name for it before Python 3.13. Without it a private
# writable mapping larger than memory + swap is refused under the default overcommit rule.
MAP_NORESERVE: Final = getattr(mmap, "MAP_NORESERVE", 0x4000)
MAP_FIXED: Final = 0x10
HUGE_PAGE: Final = 2 << 20

_FAILED: Final = ctypes.c_void_p(-1).value

Bytes = ctypes.Array[ctypes.c_char]


class Region:
    """Mapped addresses [begin, begin + length); unmapped with the last buffer over them.

    For tensors only, whose references to a buffer are invisible to the garbage collector: a visible
    one could be unmapped before the `__del__` of other objects of the same cycle.
    """

    def __init__(self, begin: int, length: int) -> None:
        self.begin = begin
        self._unmap = weakref.finalize(self, LIBC.munmap, begin, length)
        self._unmap.atexit = False

    def bytes(self, offset: int, length: int) -> Bytes:
        """A part of it, as a buffer that keeps all of it mapped."""
        buffer = (ctypes.c_char * length).from_address(self.begin + offset)
        buffer.region = self  # type: ignore[attr-defined]
        return buffer


def map_at(
    address: int | None,
    length: int,
    flags: int,
    fd: int,
    offset: int = 0,
    *,
    protection: int = mmap.PROT_READ | mmap.PROT_WRITE,
) -> int | None:
    """Map `length` bytes of `fd`; return their address, or None if the system refuses."""
    mapped: int | None = LIBC.mmap(address, length, protection, flags, fd, offset)
    return None if mapped == _FAILED else mapped


def map_private(fd: int, size: int, *, huge: bool = False) -> Bytes:
    """Map `size` (> 0) bytes of the open file `fd`; pages are shared until written to.

    Writing copies a page for this process alone: neither the file nor another process sees it.
    Where the system counts even such a mapping as used memory (overcommit mode 2) and has too
    little, the mapping is read-only, and writing to it ends the process. `huge` asks the kernel for
    2 MB pages; it then also reads 2 MB around a page that is not in memory. Raises `OSError` if it
    cannot be mapped at all.
    """
    address = map_at(None, size, mmap.MAP_PRIVATE | MAP_NORESERVE, fd)
    if address is None:
        address = map_at(None, size, mmap.MAP_SHARED, fd, protection=mmap.PROT_READ)
    region = _region(address, size)
    if huge:  # a kernel without huge pages serves small ones
        LIBC.madvise(region.begin, size, mmap.MADV_HUGEPAGE)
    return region.bytes(0, size)


def _region(address: int | None, size: int) -> Region:
    if address is None:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return Region(address, size)


@plain_tensors
def tensor_at(
    mapping: Bytes | None, dtype: torch.dtype, shape: tuple[int, ...], offset: int
) -> torch.Tensor:
    """The contiguous tensor that begins `offset` bytes into `mapping`; it keeps the mapping alive.

    `mapping` may be None for an empty tensor, which has no bytes to map.
    """
    count = torch.Size(shape).numel()
    if count == 0 or mapping is None:
        return torch.empty(shape, dtype=dtype, device="cpu")
    return torch.frombuffer(mapping, dtype=dtype, count=count, offset=offset).view(shape)


LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
LIBC.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
