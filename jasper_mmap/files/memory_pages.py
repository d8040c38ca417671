"""Pages of memory: how many a store may fill, when large ones pay, and how cold ones are read.

A cold store is read into the page cache once a node, or row by row ahead of the batches.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..control_groups import limits
from ..progress import Progress, Show, errors_of_show_passed_on
from .atomic import storage_errors
from .mapping import LIBC

_PIECE_BYTES = 16 << 20
SHARE_OF_MEMORY = 0.9
"""What of the free memory a store may fill."""
_PROC, _SYS = Path("/proc"), Path("/sys")
UNKNOWN = 1 << 62
"""More than any machine has, so that everything fits where the size of memory is unknown."""
_MADV_POPULATE_READ = getattr(mmap, "MADV_POPULATE_READ", 22)  # Linux 5.14


def fits(paths: Sequence[Path], proc: Path = _PROC, sys: Path = _SYS) -> bool:
    """Return whether all the files fit now into the memory that this process may use."""
    need = sum(path.stat().st_size for path in paths)
    return need <= SHARE_OF_MEMORY * usable_bytes(proc, sys)


def usable_bytes(proc: Path = _PROC, sys: Path = _SYS) -> int:
    """Bytes that could be allocated now and that control groups allow; `UNKNOWN` if none says.

    The page cache that a group reads in counts towards its limit: beyond it pages are dropped.
    """
    return min(free_bytes(proc), _limit(proc, sys))


def _limit(proc: Path, sys: Path) -> int:
    limit = limits(proc, sys).memory_bytes
    return UNKNOWN if limit is None else limit


def free_bytes(proc: Path = _PROC) -> int:
    """Bytes of this machine's memory that could be allocated now; `UNKNOWN` if it does not say."""
    with contextlib.suppress(OSError):  # not every system has it
        for line in (proc / "meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return UNKNOWN


def worth_huge_pages(n_bytes: int, proc: Path = _PROC, sys: Path = _SYS) -> bool:
    """Return whether to map tables of `n_bytes` in total with 2 MB pages.

    Rows are gathered faster from large pages, and a cold store is read at the speed of the disk
    instead of page by page; but a store larger than memory would be read over and over.
    """
    return n_bytes <= min(memory_bytes(), _limit(proc, sys)) // 2


def memory_bytes() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def read_through(paths: Sequence[Path], progress: Show | None = None) -> None:
    """Read the files into the page cache; `progress` is called after each piece.

    Processes of a node that call it with the same first file take turns, so the disk is read once.
    """
    counted = Progress(progress)
    counted.total = sum(path.stat().st_size for path in paths)
    with storage_errors(paths[0], "read"):
        turn = paths[0].open("rb")
    with turn, errors_of_show_passed_on():
        # Locks the file itself, since a store may be read-only. On a network file system that locks
        # only files open for writing, all processes read at once.
        with contextlib.suppress(OSError):
            fcntl.flock(turn, fcntl.LOCK_EX)
        for path in paths:
            for count in _pieces_read(path):
                counted.advance(path.name, count)


def _pieces_read(path: Path) -> Iterator[int]:
    """Read `path` in pieces into 2 MB blocks of the page cache, if the kernel supports them.

    Rows are gathered faster from such blocks than from single pages. read(2) puts about half of a
    file into them, populating a mapping all of it.
    """
    with storage_errors(path, "read"), path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        mapping = mmap.mmap(file.fileno(), size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        buffer = memoryview(bytearray(0))
        with mapping:
            for begin in range(0, size, _PIECE_BYTES):
                count = min(_PIECE_BYTES, size - begin)
                try:
                    if not begin:
                        mapping.madvise(mmap.MADV_HUGEPAGE)
                    mapping.madvise(_MADV_POPULATE_READ, begin, count)
                except (OSError, AttributeError):  # an older kernel, or not Linux
                    buffer = buffer or memoryview(bytearray(_PIECE_BYTES))
                    os.preadv(file.fileno(), [buffer[:count]], begin)
                yield count


def read_ahead(table: torch.Tensor, rows: NDArray[np.int64]) -> None:
    """Ask the kernel to fetch these rows of a mapped table; return without waiting for them."""
    row_bytes = table[:1].nbytes
    begin = table.data_ptr() + rows * row_bytes
    first = begin // mmap.PAGESIZE * mmap.PAGESIZE
    for address, length in zip(first.tolist(), (begin + row_bytes - first).tolist(), strict=True):
        LIBC.madvise(address, length, mmap.MADV_WILLNEED)
