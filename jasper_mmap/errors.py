"""Every error of the package.

Each is a `JasperError` (a `ValueError`) and also the builtin that a caller would catch. All take
one string: torch rebuilds a worker's exception as ``type(message)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from .printable import printable

FURTHER: Final = "\n  "
"""Begins each further line of an error with several problems."""
_MOST_LINES: Final = 20


class JasperError(ValueError):
    """Base of all errors of this package; the message names what, where and the remedy."""

    def __init__(self, message: str) -> None:
        # Escaped, since it may contain text from files; escaping it twice changes nothing.
        super().__init__(FURTHER.join(map(printable, message.split(FURTHER))))

    def __str__(self) -> str:
        # KeyError and OSError, bases of some leaves, would format the argument differently.
        return str(self.args[0])


class MissingFileError(JasperError, FileNotFoundError):
    """A required folder or file does not exist."""


class ExistsError(JasperError, FileExistsError):
    """A file that would be overwritten already exists."""


class AccessError(JasperError, PermissionError):
    """A file or folder may not be read or written, or would be written through a link."""


class StorageError(JasperError, OSError):
    """Disk full, quota, I/O error, no descriptor left. The previous state is kept."""


class DurabilityError(JasperError, OSError):
    """What was written is current, but the disk could not confirm it: a power cut may undo it."""


class ConfigError(JasperError, KeyError):
    """`config.json` lacks, misspells or repeats a key, or holds an invalid value."""


class FormatError(JasperError):
    """A file is damaged, truncated, of another format, or of a newer version."""


class NewerFormatError(FormatError):
    """The store was written by a newer version of this package; this one cannot read its format."""


class UnsafeFileError(FormatError):
    """A file tries to run code or names a path outside its folder, or is a FIFO, device or socket.

    It was refused; nothing was run.
    """


class ContentError(JasperError):
    """A tensor has the wrong shape or an invalid value."""


class ContentTypeError(ContentError, TypeError):
    """A tensor has the wrong dtype, or the value is not a tensor."""


class IndexRangeError(JasperError, IndexError):
    """An index is outside its table; negative numbers do not wrap around."""


class StoreChangedError(JasperError, RuntimeError):
    """The store was converted again after it was opened, or is being converted now."""


class ClosedError(JasperError, AttributeError, RuntimeError):
    """The dataset was used after `close()`."""


class UnknownAttributeError(JasperError, AttributeError):
    """A dataset has no attribute of this name; the message names the nearest one."""


class WorkerError(JasperError, RuntimeError):
    """A worker process died or made no batch in time, or no thread can be started."""


class BusyError(JasperError, TimeoutError):
    """Another process holds the lock; the message names it."""


class DeviceError(JasperError, RuntimeError):
    """The device does not exist, or cannot be used in this way."""


class DeviceMemoryError(DeviceError, MemoryError):
    """The device has too little free memory for the dataset; nothing was allocated."""


class UsageError(JasperError, TypeError):
    """An argument is invalid, or two of them contradict each other."""


class UnknownSplitError(UsageError, FileNotFoundError):
    """There is no split of this name."""


class BatchError(ContentError, AssertionError):
    """A batch is invalid: `validate_first_batch` names key, row and value."""


class BatchTypeError(BatchError, ContentTypeError):
    """A batch has a value of the wrong type or dtype."""


def together(problems: Sequence[JasperError]) -> JasperError:
    """Return one error for all `problems` (at least one): of the first's type, a line a problem.

    At most 20 further lines, then the number of the rest; the result may be combined again.
    """
    first = problems[0]
    lines = list(dict.fromkeys(line for p in problems for line in str(p).split(FURTHER)))
    if len(lines) == 1:
        return first
    if (more := len(lines) - 1 - _MOST_LINES) > 0:
        lines[1 + _MOST_LINES :] = [f"and {more} more problems"]
    return type(first)(FURTHER.join(lines))
