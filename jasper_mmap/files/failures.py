"""The error of a failed system call: which file, why, and the remedy.

Files are prepared under internal names (a hidden folder, a temporary sibling, a lock, a descriptor
number). An error names the final file instead, or the folder it belongs to.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Final

from ..errors import DurabilityError, MissingFileError, StorageError

STAGING: Final = ".converting"
"""The folder inside a store in which a conversion prepares its files."""
TEMPORARY: Final = ".tmp"
"""Suffix of temporary files."""

_SIBLING: Final = re.compile(rf"\.(.+)\.[0-9a-f]{{12}}{re.escape(TEMPORARY)}", re.DOTALL)
_DESCRIPTORS: Final = ("/dev/fd/", "/proc/self/fd/")
# Files of the staging folder that the store has under another name, or not at all.
_STAGED: Final = {
    "negatives.safetensors": "negatives",
    "CURRENT.json": "negatives/CURRENT.json",
    "journal.json": "",
    "exported.json": "",
}

_FULL: Final = "the disk is full or the quota exceeded; free some space and run it again."
_REASONS: Final = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: "the file would be larger than the file system or a limit (ulimit -f) allows;"
    " raise the limit, or choose another disk.",
    errno.EMFILE: "this process has no file descriptor left (too many open files). Close datasets"
    " that you no longer use, or raise the limit (ulimit -n), and run it again.",
    errno.ENFILE: "the whole system has no file descriptor left. End other programs, or raise"
    " fs.file-max, and run it again.",
    errno.EIO: "the disk or the network reported an I/O error. Check the disk and the system"
    " log (dmesg), and run it again.",
    errno.ESTALE: "the file was replaced on the network file system (stale file handle). Run it"
    " again; if that does not help, remount the file system.",
    errno.ENOMEM: "the system is out of memory. Free some memory, and run it again.",
    errno.ENOTDIR: "a part of its path is a file, not a folder. Correct the path, or remove that"
    " file.",
    errno.EISDIR: "it is a folder, but must be a file. Correct the path.",
    errno.ELOOP: "its path has a circle of links. Correct them.",
    errno.ENAMETOOLONG: "its name is too long for the file system. Choose a shorter one.",
}


class Noted:
    """A file that remembers why reading it failed, for a parser that would call it damaged."""

    def __init__(self, file: BufferedReader) -> None:
        self._file = file
        self.failure: OSError | None = None

    def read(self, n_bytes: int = -1) -> bytes:
        """As of a file."""
        with self._noted():
            return self._file.read(n_bytes)

    def seek(self, offset: int, whence: int = 0) -> int:
        """As of a file."""
        with self._noted():
            return self._file.seek(offset, whence)

    def tell(self) -> int:
        """As of a file."""
        with self._noted():
            return self._file.tell()

    @contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno != errno.EINVAL:  # a seek to before the start: a damaged file causes it
                self.failure = error
            raise


def user_path(path: str | Path, otherwise: Path) -> Path:
    """The file or folder that the user knows, for an internal `path`; `otherwise` for the name of
    a descriptor."""
    if str(path).startswith(_DESCRIPTORS):
        return otherwise
    path = Path(path)
    name = path.name
    if name == STAGING or name.startswith(".lock"):
        return user_path(path.parent, otherwise)
    if sibling := _SIBLING.fullmatch(name):
        return user_path(path.with_name(sibling[1]), otherwise)
    if name.startswith(".") and name.endswith(TEMPORARY):
        return path.parent
    if path.parent.name == STAGING:
        return path.parent.parent / _STAGED.get(name, name)
    return path


def missing(error: OSError, path: Path, verb: str) -> MissingFileError:
    """The error of a call that needs a missing file."""
    target = user_path(path, path)
    where = user_path(error.filename or path, target)
    if where == target:
        return MissingFileError(f"{where}: not found. Correct the path, or add the file.")
    return MissingFileError(f"{where}: not found; cannot {verb} {target}.")


def failure(error: OSError, path: Path, verb: str) -> StorageError:
    """The error of a call that failed while it read or wrote (`verb`) `path`."""
    # A rename has two names; the second one is the final file.
    where = user_path(error.filename2 or error.filename or path, user_path(path, path))
    return StorageError(f"{where}: {_reason(error, verb)}")


def not_durable(error: OSError, path: Path) -> DurabilityError:
    """The error where `path` was put in its place, but then its folder could not be synced."""
    return DurabilityError(
        f"{path}: is current, but may not survive a power cut: {_reason(error, 'sync')}"
    )


def _reason(error: OSError, verb: str) -> str:
    reason = _REASONS.get(error.errno or 0)
    if reason is None:
        return f"cannot {verb} it: {error.strerror or error}. Run it again."
    return reason if reason is _FULL else f"cannot {verb} it: {reason}"
