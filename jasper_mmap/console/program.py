"""Programs: their commands, how they end, and with which exit status."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NoReturn

import click

from ..errors import FURTHER, JasperError
from ..printable import IN_ANSWER
from .options import DEBUG
from .text import coloured, escaped, filled, verdict, width_of, write

_FAILED, _INTERRUPTED = 1, 130
_EXIT_STATUS: Final = (
    "Exit status: 0 success, 1 failure (explained on stderr, a line per problem), 2 wrong usage,"
    " 130 interrupted."
)


class Command(click.Command):
    """A command for `run`."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        settings.setdefault("context_settings", {"help_option_names": ["-h", "--help"]})
        settings.setdefault("epilog", _EXIT_STATUS)
        super().__init__(*arguments, **settings)

    def invoke(self, ctx: click.Context) -> Any:
        """Invoke it as click does, except for interrupts."""
        with _interrupts():
            return super().invoke(ctx)


class Group(Command, click.Group):
    """A command with subcommands, which its help lists under headings, for `run`."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._headed: dict[str, tuple[click.Command, ...]] = {}

    def add_section(self, heading: str, *commands: click.Command) -> None:
        """Add commands, listed under `heading` in this order."""
        for command in commands:
            self.add_command(command)
        self._headed[heading] = commands

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each section, then the commands that are in none."""
        headed = {command for commands in self._headed.values() for command in commands}
        others = (self.commands[name] for name in self.list_commands(ctx))
        rest = tuple(command for command in others if command not in headed)
        widest = max(map(len, self.commands), default=0)
        limit = formatter.width - 6 - widest  # as click computes it
        for heading, commands in {**self._headed, "Commands": rest}.items():
            if commands:
                with formatter.section(heading):
                    formatter.write_dl(
                        [
                            ((c.name or "").ljust(widest), c.get_short_help_str(limit))
                            for c in commands
                        ]
                    )


@contextmanager
def _interrupts() -> Iterator[None]:
    """Hide interrupts from click, which would print its own line."""
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
            sys.stderr.write("\n")  # after the terminal's ^C
        _fail("interrupted; run it again to complete it.", _INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except JasperError as error:
        _fail(str(error))
    except Exception as error:  # noqa: BLE001 - every failure must set the exit status
        text = " ".join(str(error).split())
        _fail(f"unexpected {type(error).__name__}: {text} (use {DEBUG} for a traceback)")
    sys.exit(status if isinstance(status, int) else 0)


@contextmanager
def answering() -> Iterator[None]:
    """Keep messages out of the log that the command prints in its answer."""
    log = logging.getLogger("jasper_mmap")

    def keep(record: logging.LogRecord) -> bool:
        return not any(hasattr(record, key) for key in IN_ANSWER)

    log.addFilter(keep)
    try:
        yield
    finally:
        log.removeFilter(keep)


def _fail(message: str, status: int = _FAILED) -> NoReturn:
    if DEBUG in sys.argv[1:]:
        for line in traceback.format_exc().splitlines():
            write(escaped(line), err=True)
    first, *further = (escaped(" ".join(line.split())) for line in message.split(FURTHER))
    width, colours = width_of(sys.stderr), coloured(sys.stderr)
    lines = [filled([verdict("Error:", "bad"), " ", first], width, colours)]
    lines += [filled(["  ", line], width, colours, indent=4) for line in further]
    write("\n".join(lines), err=True)
    sys.exit(status)
