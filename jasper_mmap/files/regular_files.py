"""Opening files for reading: regular ones only.

A folder that comes from anywhere may hold a FIFO, which hangs whoever opens it, or a link to a
device that never ends. Links are followed, since the caches of model hubs are made of them, but
each must end at a regular file; anything else is refused without being opened.
"""

from __future__ import annotations

import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Final

from ..errors import FormatError, UnsafeFileError

_KINDS: Final = {
    stat.S_IFIFO: "a FIFO (named pipe)",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFSOCK: "a socket",
}
_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0)


def open_regular(path: Path, *, at: Path | None = None) -> BufferedReader:
    """The regular file `path`, opened for reading.

    Where `at` is given (the name of a descriptor), the file is opened there, `path` only says what
    errors are to call it. Raises `UnsafeFileError` for a FIFO, device or socket, `FormatError` for
    a folder, and `OSError` where the system refuses.
    """
    fd = regular_descriptor(path, at=at)
    try:
        return os.fdopen(fd, "rb")
    except BaseException:
        os.close(fd)
        raise


def regular_descriptor(path: Path, *, at: Path | None = None) -> int:
    """The same as a bare file descriptor."""
    where = at or path
    _check(path, where.stat().st_mode)
    # Another file may have taken its place by now: the open must not wait for the writer of a FIFO.
    fd = os.open(where, _FLAGS)
    try:
        _check(path, os.fstat(fd).st_mode)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check(path: Path, mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    if stat.S_ISDIR(mode):
        raise FormatError(f"{path}: is a folder, but must be a file; name the file in it.")
    kind = _KINDS.get(stat.S_IFMT(mode), "not a file")
    raise UnsafeFileError(
        f"{path}: is {kind} (or a link to one), not a regular file; it was not opened. Put the"
        " proper file in its place."
    )
