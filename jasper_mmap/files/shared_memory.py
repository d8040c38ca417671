"""Memory and descriptors that a process shares only with the processes it starts."""

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
            with suppress(OSError):  # it is closed in any case, and nothing was written
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
    """The id of this process, without a system call in every batch."""
    return _this_process


def process_descriptor(pid: int) -> Descriptor | None:
    """A descriptor that is readable once the process has ended; None if the system has none."""
    try:
        return Descriptor(os.pidfd_open(pid))
    except (AttributeError, OSError):
        return None


def being_spawned() -> bool:
    """Return whether the current pickling is for a process that spawn or forkserver starts."""
    return context.get_spawning_popen() is not None


def memory_file(name: str, size: int) -> Descriptor:
    """Allocate `size` zero bytes by memfd_create; `name` shows in /proc only.

    Not in /dev/shm, so its size (64 MB in a default container) is no limit. Raises OSError where
    the system or a sandbox has no memfd_create.
    """
    try:
        memory = Descriptor(os.memfd_create(name, os.MFD_CLOEXEC))
    except AttributeError as error:
        raise OSError(str(error)) from None
    os.truncate(memory.fd, size)
    return memory


def anonymous_memory(name: str, size: int) -> Descriptor:
    """As `memory_file`, or else a deleted temporary file. Raises `StorageError` if both fail."""
    try:
        return memory_file(name, size)
    except OSError as refused:
        try:
            with tempfile.TemporaryFile(prefix=name) as file:
                memory = Descriptor(os.dup(file.fileno()))
        except OSError as error:
            raise StorageError(
                "cannot allocate memory to share with workers: memfd_create failed"
                f" ({refused}), and so did a temporary file ({error}). Set TMPDIR to a writable"
                " folder, or allow memfd_create."
            ) from None
    os.truncate(memory.fd, size)
    return memory
