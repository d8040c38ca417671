"""How the package's commands end: 0 done, 1 failed (a line a problem on stderr), 2 wrong usage,
130 interrupted."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from .errors import FURTHER, JasperError
from .printable import IN_ANSWER, printable

_DEBUG = "--debug"
_FAILED, _INTERRUPTED = 1, 130

debug_option = click.option(
    _DEBUG, is_flag=True, expose_value=False, help="Show the traceback of a failure."
)
"""For every command that `run` runs."""


class Group(click.Group):
    """A command with commands, for `run`."""

    def invoke(self, ctx: click.Context) -> Any:
        with _interrupts():
            return super().invoke(ctx)


class Command(click.Command):
    """A command by itself, for `run`."""

    def invoke(self, ctx: click.Context) -> Any:
        with _interrupts():
            return super().invoke(ctx)


@contextmanager
def _interrupts() -> Iterator[None]:
    """Keep interrupts from click, which would write a line of its own."""
    try:
        yield
    except KeyboardInterrupt:
        raise click.Abort from None


def run(command: click.Command) -> NoReturn:
    """Run `command` on the arguments of this process and exit with its status."""
    try:
        status = command.main(standalone_mode=False)
    except click.Abort:
        if sys.stderr.isatty():
            sys.stderr.write("\n")  # behind the terminal's ^C
        _fail("interrupted; run it again to complete it.", _INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except JasperError as error:
        _fail(str(error))
    except Exception as error:  # noqa: BLE001 - whatever it is, it must not look like a result
        text = " ".join(str(error).split())
        _fail(f"unexpected {type(error).__name__}: {text} ({_DEBUG} shows where)")
    sys.exit(status if isinstance(status, int) else 0)


@contextmanager
def answering() -> Iterator[None]:
    """Keep out of the log what the answer of the command says itself."""
    log = logging.getLogger("jasper_mmap")

    def keep(record: logging.LogRecord) -> bool:
        return not any(hasattr(record, key) for key in IN_ANSWER)

    log.addFilter(keep)
    try:
        yield
    finally:
        log.removeFilter(keep)


def _fail(message: str, status: int = _FAILED) -> NoReturn:
    if _DEBUG in sys.argv[1:]:
        for line in traceback.format_exc().splitlines():
            sys.stderr.write(f"{printable(line)}\n")
    lines = (printable(" ".join(line.split())) for line in message.split(FURTHER))
    sys.stderr.write(f"Error: {FURTHER.join(lines)}\n")
    sys.exit(status)
