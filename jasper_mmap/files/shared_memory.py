"""Memory and descriptors that a process shares with the ones it starts, and nothing else sees."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import context, reduction
from typing import Any

from ..errors import StorageError


class Descriptor:
    """An open file descriptor, closed with its owner.

    A forked process inherits it; spawn and forkserver hand over a duplicate while the process is
    being started. It cannot be pickled at any other time.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        """Close it, if it is open."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            with suppress(OSError):  # it is closed all the same, and was only read from
                os.close(fd)

    def __del__(self) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[..., Descriptor], tuple[Any, ...]]:
        if not being_spawned():
            raise TypeError("a descriptor can only be handed to a process that is being started")
        return _received, (reduction.DupFd(self.fd),)


def _received(duplicate: Any) -> Descriptor:
    return Descriptor(duplicate.detach())


_this_process = os.getpid()


def _begin() -> None:
    global _this_process
    _this_process = os.getpid()


os.register_at_fork(after_in_child=_begin)


def this_process() -> int:
    """The number of this process, without the system call that a batch would pay for."""
    return _this_process


def process_descriptor(pid: int) -> Descriptor | None:
    """A descriptor that can be read from once the process has ended; None where there are none."""
    try:
        return Descriptor(os.pidfd_open(pid))
    except (AttributeError, OSError):
        return None


def being_spawned() -> bool:
    """Whether what is being pickled goes to a process that spawn or forkserver starts now."""
    return context.get_spawning_popen() is not None


def anonymous_memory(name: str, size: int) -> Descriptor:
    """`size` bytes of zeros that no path names; `name` is seen in /proc only.

    Not /dev/shm, whose size (64 MB in a default container) is no limit here. Where there is no
    memfd_create, or a sandbox forbids it, it is a deleted temporary file. Raises `StorageError`
    where neither can be made.
    """
    try:
        memory = Descriptor(os.memfd_create(name, os.MFD_CLOEXEC))
    except (AttributeError, OSError) as refused:
        try:
            with tempfile.TemporaryFile(prefix=name) as file:
                memory = Descriptor(os.dup(file.fileno()))
        except OSError as error:
            raise StorageError(
                "memory to share with workers cannot be made: memfd_create is refused"
                f" ({refused}), and so is a temporary file ({error}). Set TMPDIR to a folder that"
                " can be written, or allow memfd_create."
            ) from None
    os.truncate(memory.fd, size)
    return memory
