"""The few integers that every worker must see: epoch, forced variant, generation.

They lie in anonymous shared memory. A forked worker inherits the mapping; spawn and forkserver
hand over the descriptor while the process is being started. Any other pickle (or deepcopy) makes
a copy that begins with the words as they stand and has its own from then on. Each word is an
aligned 64-bit integer written in one store, so a reader sees the old value or the new one.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable
from multiprocessing import context, reduction
from typing import Any, Final, NamedTuple

NO_VARIANT: Final = -1
_SIZE: Final = mmap.PAGESIZE


def anonymous_file(name: str, size: int) -> int:
    """A descriptor of `size` bytes of memory that no path names (a deleted file without memfd)."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create(name, os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile(prefix=name) as file:
            fd = os.dup(file.fileno())
    os.truncate(fd, size)
    return fd


class Words(NamedTuple):
    """The control words at one moment."""

    epoch: int
    forced: int
    """Variant number, or `NO_VARIANT`."""
    generation: int


class Control:
    """Control words shared with every process that this one starts."""

    def __init__(self, words: Words) -> None:
        self._attach(anonymous_file("jasper-control", _SIZE))
        self._words[: len(words)] = memoryview(bytearray(8 * len(words))).cast("q")
        for i, value in enumerate(words):
            self._words[i] = value

    def _attach(self, fd: int) -> None:
        self._fd = fd
        self._memory = mmap.mmap(fd, _SIZE)
        self._words = memoryview(self._memory).cast("q")

    def read(self) -> Words:
        return Words(*self._words[: len(Words._fields)])

    def set_epoch(self, epoch: int) -> None:
        self._words[Words._fields.index("epoch")] = epoch

    def set_forced(self, variant: int) -> None:
        self._words[Words._fields.index("forced")] = variant

    def set_generation(self, generation: int) -> None:
        self._words[Words._fields.index("generation")] = generation

    def __reduce__(self) -> tuple[Callable[..., Control], tuple[Any, ...]]:
        if context.get_spawning_popen() is not None:
            return _receive, (reduction.DupFd(self._fd),)
        return Control, (self.read(),)

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            os.close(self._fd)


def _receive(descriptor: Any) -> Control:
    control = Control.__new__(Control)
    control._attach(descriptor.detach())
    return control
