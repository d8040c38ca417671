"""File locks that name their holder."""

from __future__ import annotations

import os
import pwd
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import AccessError, BusyError, FormatError
from ..printable import printable
from . import atomic


@contextmanager
def exclusive(path: Path, timeout_s: float, remedy: str) -> Iterator[None]:
    """Hold the lock file `path`, whose folder must exist.

    Raises `BusyError` naming the holder after `timeout_s`; `remedy` ends its message.
    """
    holder = path.with_name(f"{path.name}-holder.json")
    # Made here and not kept: a lock object is invalid after a fork and cannot be pickled.
    lock = FileLock(path, timeout=timeout_s)
    with atomic.storage_errors(path):
        _check_lock_file(path)
        try:
            lock.acquire()
        except Timeout:  # inside, since it is an OSError too
            raise BusyError(
                f"{path}: held by {_read_holder(holder)} for more than {timeout_s:g} s; {remedy}."
            ) from None
    try:
        with suppress(OSError):  # only informs others, so not worth failing for
            _write_new(holder, f'{{"by": "{process_name()}", "since": "{now()}"}}\n')
        yield
    finally:
        with suppress(OSError):
            atomic.remove(holder, missing_ok=True)
        with suppress(OSError):  # the work is done; the lock ends with this process at the latest
            lock.release()


def _read_holder(path: Path) -> str:
    try:
        value = atomic.read_json(path)
    except (FormatError, OSError):
        return "another process"
    return printable(f"{value.get('by')!s:.80} (since {value.get('since')!s:.40})")


def _check_lock_file(path: Path) -> None:
    """Raise `AccessError` unless the lock file is missing or a regular file.

    Since version 3.20.1 filelock opens it with O_NOFOLLOW, so a link put there after this check is
    not followed either.
    """
    atomic.refuse_link(path)
    if path.exists() and not path.is_file():
        raise AccessError(f"{path}: is not a regular file, so it cannot be locked; remove it.")


def _write_new(path: Path, text: str) -> None:
    """Replace `path`, even if it is a link, with a new file. Call with the lock held."""
    atomic.remove(path, missing_ok=True)
    with atomic.create(path) as file:
        atomic.write_all(file, text.encode())


def process_name() -> str:
    """The name of this process for others: pid@host."""
    return f"{os.getpid()}@{socket.gethostname()}"


def user_name() -> str:
    """The user of this process for others: name@host."""
    uid = os.geteuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = f"uid {uid}"
    return f"{name}@{socket.gethostname()}"


def now() -> str:
    """The current time in the form that a store's files use: UTC, ISO 8601, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
