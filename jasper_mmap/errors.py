"""Every error of the package.

Each is a `JasperError` (a `ValueError`) and also the builtin a caller would catch. All take one
string: torch rebuilds a worker's exception as ``type(message)``, a second argument would be lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from .printable import printable

FURTHER: Final = "\n  "
"""Begins each further line of an error that tells of several problems."""
_MOST_LINES: Final = 20


class JasperError(ValueError):
    """Base of all errors of this package; the message says what, where and the remedy."""

    def __init__(self, message: str) -> None:
        # It may hold text of files; a worker's error is made of its message a second time.
        super().__init__(FURTHER.join(map(printable, message.split(FURTHER))))

    def __str__(self) -> str:
        # KeyError and OSError, which some leaves also are, would format their argument otherwise.
        return str(self.args[0])


class MissingFileError(JasperError, FileNotFoundError):
    """A folder or file that must be there is not."""


class ExistsError(JasperError, FileExistsError):
    """A file that would be overwritten is there already."""


class AccessError(JasperError, PermissionError):
    """A file or folder may not be read or written, or would be written through a link."""


class StorageError(JasperError, OSError):
    """Disk full, quota, I/O error, no descriptor left. What was there before is still in force."""


class ConfigError(JasperError, KeyError):
    """`config.json` lacks a key, misspells one, repeats one, or holds a value that cannot be."""


class FormatError(JasperError):
    """A file is damaged, truncated, of another format, or of a newer version."""


class NewerFormatError(FormatError):
    """The store was written by a newer version of this package; this one cannot read its format."""


class UnsafeFileError(FormatError):
    """A file tries to run code or to lead outside its folder, or is a FIFO, device or socket.

    It was refused, nothing was run.
    """


class ContentError(JasperError):
    """A tensor has the wrong shape or holds a value that its table does not allow."""


class ContentTypeError(ContentError, TypeError):
    """A tensor has a dtype that its table does not allow, or is no tensor at all."""


class IndexRangeError(JasperError, IndexError):
    """An index lies outside its table; negative numbers do not wrap around."""


class StoreChangedError(JasperError, RuntimeError):
    """The store was converted again since it was opened, or is being converted now."""


class ClosedError(JasperError, AttributeError, RuntimeError):
    """The dataset was used after `close()`."""


class UnknownAttributeError(JasperError, AttributeError):
    """A dataset has no attribute of this name; the message names the nearest one."""


class WorkerError(JasperError, RuntimeError):
    """A worker process died or gave no batch in time, or no thread can be started."""


class BusyError(JasperError, TimeoutError):
    """Another process holds the lock; the message says which."""


class DeviceError(JasperError, RuntimeError):
    """The device is not there, or cannot be used in this way."""


class DeviceMemoryError(DeviceError, MemoryError):
    """The device has too little free memory for the dataset; nothing was allocated."""


class UsageError(JasperError, TypeError):
    """An argument is of the wrong kind or two of them do not go together."""


class UnknownSplitError(UsageError, FileNotFoundError):
    """There is no split of this name."""


class BatchError(ContentError, AssertionError):
    """A batch is not what it must be: `validate_first_batch` says key, row and value."""


class BatchTypeError(BatchError, ContentTypeError):
    """A batch has a value of the wrong type or dtype."""


def together(problems: Sequence[JasperError]) -> JasperError:
    """One error for all of `problems` (at least one): of the first one's type, a line a problem.

    At most 20 further lines, then their count; errors made here may be put together again.
    """
    first = problems[0]
    lines = list(dict.fromkeys(line for p in problems for line in str(p).split(FURTHER)))
    if len(lines) == 1:
        return first
    if (more := len(lines) - 1 - _MOST_LINES) > 0:
        lines[1 + _MOST_LINES :] = [f"and {more} more problems"]
    return type(first)(FURTHER.join(lines))
