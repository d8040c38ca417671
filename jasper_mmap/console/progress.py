"""How far a long command is, on stderr: a bar on a terminal, lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from ..printable import printable, size, size_of
from ..progress import Show
from .text import echo

_LINE_INTERVAL_S: Final = 5.0
_NAME_WIDTH: Final = 25
"""Of the name before a bar: that of the longest artifact."""


@contextmanager
def shown_progress(*, each: bool = False, unit: str | None = None) -> Iterator[Show]:
    """Show progress on stderr: a bar on a terminal, else a line every 5 s, with `each` also for
    each new name. What is counted is bytes, or `unit`, in the plural."""
    if not sys.stderr.isatty():
        yield _line_by_line(each, unit)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[amount]}"),
        TimeRemainingColumn(),
    )
    width = _NAME_WIDTH
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, expand=True) as bar:
        # Invisible until the total is known, on which the length of the bar depends.
        shown = bar.add_task("", total=None, visible=False, amount="")

        def advance(name: str, done: int, total: int) -> None:
            nonlocal width
            short = printable(name.removesuffix(".safetensors"))
            width = max(width, len(short))  # or the bar would change its place with every name
            bar.update(
                shown,
                description=short.ljust(width),
                amount=_amount(done, total, unit),
                completed=done,
                total=total,
                visible=True,
            )

        yield advance


def _line_by_line(each: bool, unit: str | None) -> Show:
    began = printed_at = time.monotonic()
    last = ""

    def advance(name: str, done: int, total: int) -> None:
        nonlocal printed_at, last
        now = time.monotonic()
        if (each and name != last) or now - printed_at >= _LINE_INTERVAL_S:
            printed_at, last = now, name
            echo(_how_far(began, name, done, total, unit), err=True)

    return advance


def _how_far(began: float, name: str, done: int, total: int, unit: str | None) -> str:
    share = f"{done / max(total, 1):4.0%}"
    if unit is not None:
        return f"{share}, {_amount(done, total, unit)}: {name}"
    speed = size(done / max(time.monotonic() - began, 1e-9))
    return f"{share} of {size(total)}, {speed}/s: {name}"


def _amount(done: int, total: int, unit: str | None) -> str:
    return size_of(done, total) if unit is None else f"{done:{len(str(total))}} of {total} {unit}"
