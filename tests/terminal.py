"""Commands on a pseudo-terminal of a given width, in this process."""

import contextlib
import fcntl
import os
import pty
import re
import struct
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple, TextIO
from unittest import mock

import pytest

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Shown(NamedTuple):
    """What a command wrote to a terminal, with its escapes, and its exit status."""

    raw: str
    status: int

    @property
    def lines(self) -> list[str]:
        """The lines as a reader sees them, without colours."""
        return ESCAPES.sub("", self.raw).splitlines()


def shown(
    main: Callable[[], None],
    program: str,
    *arguments: object,
    columns: int = 80,
    **environment: str,
) -> Shown:
    """Run a command whose stdout and stderr are one terminal; TERM is xterm, NO_COLOR not set."""
    settings = {"TERM": "xterm", **environment}
    with mock.patch.dict(os.environ, settings):
        for name in {"COLUMNS", "NO_COLOR"} - settings.keys():
            os.environ.pop(name, None)
        with (
            terminal(columns) as (stream, written),
            contextlib.redirect_stdout(stream),
            contextlib.redirect_stderr(stream),
            mock.patch.object(sys, "argv", [program, *map(str, arguments)]),
            pytest.raises(SystemExit) as ended,
        ):
            main()
    return Shown("".join(written), int(ended.value.code or 0))


@contextlib.contextmanager
def terminal(columns: int) -> Iterator[tuple[TextIO, list[str]]]:
    """Yield a terminal, and a list that has what was written to it when the block ends."""
    outside, inside = pty.openpty()
    fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    parts: list[bytes] = []
    reader = threading.Thread(target=_read_all, args=(outside, parts))
    reader.start()
    written: list[str] = []
    try:
        with os.fdopen(inside, "w", encoding="utf-8", buffering=1) as stream:
            yield stream, written
    finally:
        reader.join()
        os.close(outside)
        written.append(b"".join(parts).decode().replace("\r\n", "\n"))


def _read_all(descriptor: int, parts: list[bytes]) -> None:
    with contextlib.suppress(OSError):  # Linux's way of saying that the other end is closed
        while part := os.read(descriptor, 1 << 16):
            parts.append(part)
