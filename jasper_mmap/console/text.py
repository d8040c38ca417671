"""Lines for a terminal or a pipe: escaped, broken between words, verdicts in colour.

Only a terminal gets colours and breaks: in a pipe a line stays a line. NO_COLOR turns colours off.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, Literal, TextIO

import click

from ..printable import printable

Meaning = Literal["good", "doubtful", "bad"]

TOGETHER: Final = "\xa0"
"""Stands for a space where a line may not be broken; `printable` leaves none of these."""
_COLOURS: Final[dict[Meaning, str]] = {"good": "green", "doubtful": "yellow", "bad": "red"}
_USUAL_WIDTH: Final = 80
_INDENT: Final = 2


class Verdict(str):
    """Text that a terminal shows in the colour of what it means."""

    means: Meaning


def verdict(text: str, means: Meaning) -> Verdict:
    """Return `text`, for a cell or a part of a line, in green, yellow or red."""
    result = Verdict(text)
    result.means = means
    return result


def echo(*parts: str, err: bool = False) -> None:
    """Print a line of one or several parts, with unprintable characters escaped."""
    stream = sys.stderr if err else sys.stdout
    write(filled([escaped(part) for part in parts], width_of(stream), coloured(stream)), err=err)


def echo_warning(text: str) -> None:
    """Print a line that begins with `warning:`."""
    echo(verdict("warning:", "doubtful"), f" {text}")


def echo_json(value: Any) -> None:
    """Print an answer as JSON."""
    click.echo(json.dumps(value, indent=2))


def write(text: str, *, err: bool = False) -> None:
    """Print text that is laid out and coloured already."""
    click.echo(text, err=err, color=coloured(sys.stderr if err else sys.stdout))


def escaped(part: str) -> str:
    """Return `part` with unprintable characters escaped; a verdict stays one."""
    text = printable(part)
    return verdict(text, part.means) if isinstance(part, Verdict) else text


def width_of(stream: TextIO) -> int | None:
    """Return how many characters a line of a terminal has; None if `stream` is no terminal."""
    if not stream.isatty():
        return None
    with suppress(KeyError, ValueError):
        if (columns := int(os.environ["COLUMNS"])) > 0:
            return columns
    with suppress(OSError, ValueError):  # a stream without a descriptor
        return os.get_terminal_size(stream.fileno()).columns or _USUAL_WIDTH
    return _USUAL_WIDTH


def coloured(stream: TextIO) -> bool:
    """Return whether `stream` is a terminal that shows colours, and its user wants them."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def filled(parts: Sequence[str], width: int | None, colours: bool, *, indent: int = _INDENT) -> str:
    """Return a line of escaped parts as lines of at most `width` characters, if that is given.

    Lines after the first are indented. A word longer than a line, as a path may be, is not broken.
    """
    text = "".join(parts)
    if width is not None:
        text = broken(text, width, indent)
    if colours:
        ends, painted = 0, []
        for part in parts:  # a break takes the place of a space, so they are as long as before
            begin, ends = ends, ends + len(part)
            painted.append(paint(text[begin:ends], part))
        text = "".join(painted)
    return text.replace("\n", "\n" + " " * indent).replace(TOGETHER, " ")


def paint(text: str, like: str) -> str:
    """Return `text` in the colour of `like`, if that is a verdict."""
    if not text or not isinstance(like, Verdict):
        return text
    return click.style(text, fg=_COLOURS[like.means])


def broken(text: str, width: int, indent: int = 0) -> str:
    """Replace spaces of `text` by line breaks, so that lines fit into `width` characters.

    `indent` is what the caller will put before each line but the first.
    """
    from rich.cells import cell_len

    first, *words = text.split(" ")
    pieces, used = [first], cell_len(first)
    empty = not first  # a line that has only spaces so far
    for word in words:
        length = cell_len(word)
        if used + 1 + length <= width or empty:
            pieces.append(f" {word}")
            used += 1 + length
            empty = empty and not word
        else:
            pieces.append(f"\n{word}")
            used = indent + length
    return "".join(pieces)
