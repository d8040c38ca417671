"""Arguments and options that several commands have."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

DEBUG: Final = "--debug"

PATH: Final = click.Path(path_type=Path, readable=False)

debug_option = click.option(
    DEBUG, is_flag=True, expose_value=False, help="Show the traceback of an error."
)
"""For every command that `run` runs."""

store_argument = click.argument("store", metavar="DIR", type=PATH)


class FiniteRange(click.FloatRange):
    """A number within bounds and valid as a timeout: neither infinite nor NaN."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert it as click does; refuse infinity and NaN."""
        number = super().convert(value, param, ctx)
        if not number <= threading.TIMEOUT_MAX:
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


def json_option(text: str = "Print the answer as JSON.") -> Callable[..., Any]:
    """The option `--json`, passed as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help=text)


def version_option(program: str) -> Callable[..., Any]:
    """The option `--version`, which is looked up only on use."""

    def show(context: click.Context, _option: click.Parameter, asked: bool) -> None:
        if asked and not context.resilient_parsing:
            from ..version import __version__

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
