"""The common part of all commands: options, output, progress and exit status.

This module does not import torch, and imports rich only to print with it, so help and usage errors
appear at once.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NoReturn

import click

from .errors import FURTHER, JasperError
from .printable import IN_ANSWER, printable, size
from .progress import Show

_DEBUG: Final = "--debug"
_FAILED, _INTERRUPTED = 1, 130
_EXIT_STATUS: Final = (
    "Exit status: 0 success, 1 failure (explained on stderr, a line per problem), 2 wrong usage,"
    " 130 interrupted."
)
_PIPED_WIDTH: Final = 140
"""Width of a table without a terminal, in characters."""
_LINE_INTERVAL_S: Final = 5.0

PATH: Final = click.Path(path_type=Path, readable=False)

debug_option = click.option(
    _DEBUG, is_flag=True, expose_value=False, help="Show the traceback of an error."
)
"""For every command that `run` runs."""

store_argument = click.argument("store", metavar="DIR", type=PATH)


def json_option(text: str = "Print the answer as JSON.") -> Callable[..., Any]:
    """The option `--json`, passed as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help=text)


def version_option(program: str) -> Callable[..., Any]:
    """The option `--version`, which is looked up only on use."""

    def show(context: click.Context, _option: click.Parameter, asked: bool) -> None:
        if asked and not context.resilient_parsing:
            from .version import __version__

            click.echo(f"{program}, version {__version__}")
            context.exit()

    text = "Show the version and exit."
    return click.option(
        "--version", is_flag=True, expose_value=False, is_eager=True, callback=show, help=text
    )


def integers(low: int) -> Callable[..., Any]:
    """An option's `callback` for comma-separated integers >= `low`; it returns a tuple."""

    def parsed(
        _context: click.Context, _option: click.Parameter, text: str | None
    ) -> tuple[int, ...] | None:
        if text is None:
            return None
        try:
            values = tuple(int(part) for part in text.split(","))
        except ValueError:
            raise click.BadParameter(
                f"expected comma-separated integers, e.g. 0,2, not {text!r}"
            ) from None
        if min(values) < low:
            raise click.BadParameter(f"integers must be >= {low}, not {min(values)}")
        return values

    return parsed


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
    """A command with subcommands, for `run`."""


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
        _fail(f"unexpected {type(error).__name__}: {text} (use {_DEBUG} for a traceback)")
    sys.exit(status if isinstance(status, int) else 0)


def echo(text: str, *, err: bool = False) -> None:
    """Print a line, with unprintable characters escaped."""
    click.echo(printable(text), err=err)


def echo_json(value: Any) -> None:
    """Print an answer as JSON."""
    click.echo(json.dumps(value, indent=2))


def echo_table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    right: Iterable[int] = (),
    *,
    fold: bool = False,
    title: str | None = None,
) -> None:
    """Print a table, the columns numbered by `right` right-aligned; on a narrow terminal, cells are
    folded or cut."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, title=title)
    for number, column in enumerate(header):
        table.add_column(
            column,
            justify="right" if number in right else "left",
            overflow="fold" if fold else "ellipsis",
            no_wrap=not fold,
        )
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH).print(table)


@contextmanager
def shown_progress(*, each: bool = False) -> Iterator[Show]:
    """Show progress on stderr: a bar on a terminal, else a line every 5 s, with `each` also for
    each new name."""
    if not sys.stderr.isatty():
        yield _line_by_line(each)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    text, began = TextColumn("{task.description}", markup=False), time.monotonic()
    columns = (BarColumn(), TimeRemainingColumn(), text)
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        shown = bar.add_task("", total=None)

        def advance(name: str, done: int, total: int) -> None:
            how_far = _how_far(began, name, done, total)
            bar.update(shown, description=how_far, completed=done, total=total)

        yield advance


def _line_by_line(each: bool) -> Show:
    began = printed_at = time.monotonic()
    last = ""

    def advance(name: str, done: int, total: int) -> None:
        nonlocal printed_at, last
        now = time.monotonic()
        if (each and name != last) or now - printed_at >= _LINE_INTERVAL_S:
            printed_at, last = now, name
            echo(_how_far(began, name, done, total), err=True)

    return advance


def _how_far(began: float, name: str, done: int, total: int) -> str:
    speed = size(done / max(time.monotonic() - began, 1e-9))
    return printable(f"{done / max(total, 1):4.0%} of {size(total)}, {speed}/s: {name}")


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
    if _DEBUG in sys.argv[1:]:
        for line in traceback.format_exc().splitlines():
            sys.stderr.write(f"{printable(line)}\n")
    lines = (printable(" ".join(line.split())) for line in message.split(FURTHER))
    sys.stderr.write(f"Error: {FURTHER.join(lines)}\n")
    sys.exit(status)
