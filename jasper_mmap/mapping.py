"""Read-only sharing of a file's bytes as tensors that may be written to, privately."""

from __future__ import annotations

import contextlib
import mmap
import warnings
from collections.abc import Iterator
from typing import Final

import torch

# Linux's value; the mmap module has no name for it before Python 3.13. Without it a private
# writable mapping larger than memory + swap is refused under the default overcommit rule.
MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if hasattr(mmap, "MAP_PRIVATE") else 0)

HUGE_PAGE: Final = 2 << 20


def map_private(fd: int, size: int, *, huge: bool = False) -> mmap.mmap:
    """Map `size` (> 0) bytes of the open file `fd`; pages are shared until written to.

    Writing copies a page for this process alone: neither the file nor another process sees it.
    Where the system counts even such a mapping against memory (overcommit mode 2) and has not
    enough, the mapping is read-only, and writing to it ends the process. With `huge` the kernel is
    asked for 2 MB pages, and reads as much around a page that is not in memory yet.
    """
    try:
        mapping = mmap.mmap(
            fd,
            size,
            flags=mmap.MAP_PRIVATE | MAP_NORESERVE,
            prot=mmap.PROT_READ | mmap.PROT_WRITE,
        )
    except OSError:
        mapping = mmap.mmap(fd, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
    if huge and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages serves small ones
            mapping.madvise(mmap.MADV_HUGEPAGE)
    return mapping


def tensor_at(
    mapping: mmap.mmap | None, dtype: torch.dtype, shape: tuple[int, ...], offset: int
) -> torch.Tensor:
    """The contiguous tensor that begins `offset` bytes into `mapping`; it keeps the mapping alive.

    `mapping` may be None for an empty tensor, which has no bytes to map.
    """
    count = torch.Size(shape).numel()
    if count == 0 or mapping is None:
        return torch.empty(shape, dtype=dtype)
    with _silent() if memoryview(mapping).readonly else contextlib.nullcontext():
        flat = torch.frombuffer(mapping, dtype=dtype, count=count, offset=offset)
    return flat.view(shape)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """For the read-only fallback alone: what it changes is not made for several threads."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        yield
