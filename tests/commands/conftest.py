"""The command `jasper-mmap`, run in the process of a test."""

import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

from jasper_mmap.__main__ import main


class Ended(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str


Command = Callable[..., Ended]


@pytest.fixture
def jasper(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Return a function that runs the command in this process; with `columns` its stdout is a
    terminal of that width, without colours."""

    def run(*arguments: object, columns: int | None = None) -> Ended:
        if columns is not None:
            monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
            monkeypatch.setenv("COLUMNS", str(columns))
            monkeypatch.setenv("TERM", "dumb")
        monkeypatch.setattr(sys, "argv", ["jasper-mmap", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return Ended(int(ended.value.code or 0), *capsys.readouterr())

    return run
