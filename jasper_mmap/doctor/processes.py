"""What only a second process shows: whether pages of a store are shared, whether a lock excludes.

The processes are small programs of this folder that do not import the package.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from ..errors import JasperError, StorageError
from ..files import atomic
from ..files.locks import exclusive
from .facts import Sharing

MOST_BYTES: Final = 24 << 20
"""Bytes of a store that each of two processes maps. Where they share nothing, 48 MB are read."""
_LOCK_TIMEOUT_S: Final = 5.0
_PROGRAMS: Final = Path(__file__).parent
MAPPING_PROGRAM: Final = _PROGRAMS / "mapping_process.py"
LOCKING_PROGRAM: Final = _PROGRAMS / "locking_process.py"


@contextlib.contextmanager
def _running(program: Path, arguments: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """Start a program; at the end of the block its stdin is closed, and it is waited for."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(program), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    try:
        yield process
    finally:
        with contextlib.suppress(OSError):  # it has ended already
            process.communicate()


def _answer(process: subprocess.Popen[str], line: str = "") -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(line)
        process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        assert process.stderr is not None
        last = process.stderr.read().strip().splitlines()[-1:]
        raise StorageError(last[0] if last else f"the process ended with {process.wait()}")
    return answer.strip()


def sharing(files: Sequence[Path], program: Path = MAPPING_PROGRAM) -> Sharing | None:
    """Measure how much of `files` two processes share that map it; at most `MOST_BYTES` of it.

    Returns None if /proc does not show it. Raises `StorageError` if the files cannot be mapped.
    """
    parts: list[tuple[Path, int]] = []
    left = MOST_BYTES
    for path in sorted(files, key=lambda path: -path.stat().st_size):
        if length := min(left, path.stat().st_size):
            parts.append((path, length))
            left -= length
    arguments = [text for path, length in parts for text in (str(path.resolve()), str(length))]
    with _running(program, arguments) as one, _running(program, arguments) as other:
        _answer(one)
        _answer(other)
        numbers = json.loads(_answer(one, "measure\n"))
    mapped = sum(length for _, length in parts)
    return None if numbers is None else Sharing(mapped=mapped, **numbers)


def lock_excludes(folder: Path, program: Path = LOCKING_PROGRAM) -> bool:
    """Return whether a lock that this process holds on a new file in `folder` keeps another out.

    Raises a `JasperError` if no lock can be taken there. Nothing stays in the folder.
    """
    path = folder / f".lock-doctor-{secrets.token_hex(6)}"
    try:
        with _running(program, [str(path)]) as other:
            with exclusive(path, _LOCK_TIMEOUT_S, "try again"):
                held = _answer(other, "try\n")
            # filelock may remove its file, so make sure that there is one to take.
            with contextlib.suppress(FileExistsError, JasperError):
                atomic.create(path).close()
            free = _answer(other, "try\n")
    finally:
        with contextlib.suppress(OSError):
            atomic.remove(path, missing_ok=True)
    if free != "taken":
        raise StorageError(f"{folder}: another process cannot take a lock there: {free}")
    if held not in ("refused", "taken"):
        raise StorageError(f"{folder}: another process cannot try a lock there: {held}")
    return held == "refused"
