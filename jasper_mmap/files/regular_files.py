"""Opening files for reading: regular ones only.

An untrusted folder may contain a FIFO, on which `open` blocks, or a link to an endless device.
Links are followed, since the caches of model hubs consist of them, but each must end at a regular
file; anything else is refused without being opened.
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
    """Open the regular file `path` for reading.

    With `at` (the name of a descriptor) that is opened, and errors name `path`. Raises
    `UnsafeFileError` for a FIFO, device or socket, `FormatError` for a folder, and `OSError` if the
    system refuses.
    """
    fd = regular_descriptor(path, at=at)
    try:
        return os.fdopen(fd, "rb")
    except BaseException:
        os.close(fd)
        raise


def regular_descriptor(path: Path, *, at: Path | None = None) -> int:
    """Open it as `open_regular` does; return the bare descriptor."""
    where = at or path
    _check(path, where.stat().st_mode)
    # It may be a FIFO by now; O_NONBLOCK keeps the open from waiting for a writer.
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
        raise FormatError(f"{path}: is a folder, but must be a file; name the file inside.")
    kind = _KINDS.get(stat.S_IFMT(mode), "not a file")
    raise UnsafeFileError(
        f"{path}: is {kind} (or a link to one), not a regular file; it was not opened. Replace it"
        " with a regular file."
    )
