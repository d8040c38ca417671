"""One call of the operating system that fails: the k-th, with an error number of choice.

What is counted: the functions of `os` that touch files, `flock`, the methods of every file that the
packages open, and the mapping of files. A `close` that fails has closed, as on Linux.
"""

import errno
import fcntl
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from jasper_mmap.dataset.device import stack
from jasper_mmap.files import mapping

CALLS = (
    *("open", "close", "read", "pread", "dup", "stat", "lstat", "fstat", "statvfs", "readlink"),
    *("listdir", "scandir", "mkdir", "rmdir", "unlink", "rename", "replace", "fsync", "utime"),
)
RawFile = io.FileIO
METHODS = ("read", "readinto", "readall", "write", "seek", "tell", "flush", "truncate")
ERRORS = (
    *("EIO", "ENOSPC", "EDQUOT", "EROFS", "ESTALE", "EACCES", "EMFILE", "ENFILE", "ENOMEM"),
    "EINTR",
)


class Fault:
    """Counts the calls; the one numbered `at` (from 0) fails with `number`, once."""

    def __init__(self, at: int = -1, number: int = 0) -> None:
        self._at = at
        self._number = number
        self.calls: list[str] = []
        """The names of the calls so far."""
        self.failed = False

    def __call__(self, name: str, first: Any, *_: Any) -> None:
        """Count one call, and fail where it is its turn; it is given what the call is."""
        self.calls.append(name)
        # Python itself repeats what a signal interrupted, but for `close`.
        if self._number == errno.EINTR and not name.endswith("close"):
            return
        if len(self.calls) - 1 == self._at:
            self.failed = True
            named = isinstance(first, str | os.PathLike) and not name.startswith("file.")
            raise OSError(self._number, os.strerror(self._number), *([str(first)] * named))


def _failing(fault: Fault, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        given = arguments or (None,)
        if name.endswith("close"):
            original(*arguments, **options)
            return fault(name, *given)
        fault(name, *given)
        return original(*arguments, **options)

    return call


def _raw_file(fault: Fault) -> type[io.FileIO]:
    class File(RawFile):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            fault("file.open", arguments[0])
            super().__init__(*arguments, **options)

        def __del__(self) -> None:
            """Not counted: nobody hears what fails here."""
            RawFile.close(self)

        def close(self) -> None:
            was_open = not self.closed
            super().close()
            if was_open:
                fault("file.close", None)

    for method in METHODS:
        original = getattr(RawFile, method)

        def counted(self: Any, *given: Any, _name: str = method, _original: Any = original) -> Any:
            fault(f"file.{_name}", self, *given)
            return _original(self, *given)

        setattr(File, method, counted)
    return File


@contextmanager
def injected(fault: Fault) -> Iterator[Fault]:
    """Let every call of the block go through `fault`."""
    file = _raw_file(fault)
    opener = io.open

    def opened(where: Any, mode: str = "r", buffering: int = -1, *_: Any, **options: Any) -> Any:
        if "b" not in mode:
            creates = not isinstance(where, int) and set(mode) & set("awx")
            fault("open", where, os.O_CREAT if creates else os.O_RDONLY)
            return opener(where, mode, buffering, *_, **options)
        raw = file(where, mode, opener=options.get("opener"))
        if buffering == 0:
            return raw
        if "+" in mode:
            return io.BufferedRandom(raw)
        return io.BufferedReader(raw) if "r" in mode else io.BufferedWriter(raw)

    def mapped(*arguments: Any, **options: Any) -> Any:
        if arguments[3] < 0:
            return map_at(*arguments, **options)
        fault("mmap", None)
        return map_at(*arguments, **options)

    map_at = mapping.map_at
    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, _failing(fault, name, getattr(os, name)))
        patch.setattr(fcntl, "flock", _failing(fault, "flock", fcntl.flock))
        patch.setattr(io, "FileIO", file)
        patch.setattr(io, "open", opened)
        patch.setattr(os, "fdopen", opened)
        patch.setattr(tempfile, "_io", type("_io", (), {"open": staticmethod(opened)}))
        patch.setattr(mapping, "map_at", mapped)
        patch.setattr(stack, "map_at", mapped)
        yield fault
