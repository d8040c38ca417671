"""Tables that fit the terminal: a column that has no room is shown below each row, or left out.

No word is ever cut. In a pipe each row is one line with all columns.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import click

from .text import (
    TOGETHER,
    Verdict,
    broken,
    coloured,
    escaped,
    filled,
    paint,
    verdict,
    width_of,
    write,
)

_GAP: Final = 2
_INDENT: Final = 4
_NARROWEST: Final = 24
"""Width to which a column of text may shrink before it is moved below the rows."""
_LONGEST_RULE: Final = 100
"""Length of the line below the header in a pipe."""


@dataclass(frozen=True)
class Column:
    """A column of a table. The first one of a table always stays in it."""

    title: str
    right: bool = field(default=False, kw_only=True)
    """Aligned to the right, as numbers are."""
    wrap: bool = field(default=False, kw_only=True)
    """Text that may continue on further lines."""
    rank: int = field(default=0, kw_only=True)
    """Where there is no room for all columns, the one of the highest rank goes first, and of those
    of one rank the last."""
    drop: bool = field(default=False, kw_only=True)
    """Left out where there is no room, instead of shown below each row."""


def echo_table(
    header: Sequence[str | Column],
    rows: Iterable[Sequence[str]],
    right: Iterable[int] = (),
    *,
    drop: Iterable[int] = (),
    fold: bool = False,
    title: str | None = None,
) -> None:
    """Print a table; unprintable characters are escaped, and cells that are a `Verdict` coloured.

    For columns given by their titles alone, `right` has the numbers of those aligned to the right,
    `drop` of those left out first, the last one first, and `fold` says whether text may continue on
    further lines.
    """
    numbers, less = set(right), set(drop)
    columns = [
        one
        if isinstance(one, Column)
        else Column(one, right=n in numbers, wrap=fold, rank=int(n in less), drop=n in less)
        for n, one in enumerate(header)
    ]
    cells = [[escaped(cell) for cell in row] for row in rows]
    table = _Table(columns, cells, width_of(sys.stdout), coloured(sys.stdout))
    write("\n".join([*([escaped(title)] if title else []), *table.lines()]))


class _Table:
    """The lines of a table whose cells are escaped; `width` is None in a pipe."""

    def __init__(
        self, columns: Sequence[Column], cells: list[list[str]], width: int | None, colours: bool
    ) -> None:
        self._columns = columns
        self._cells = cells
        self._width = width
        self._colours = colours
        self._widths = self._fitted()
        """Number of a column -> its width, for the columns that have room."""
        moved = [number for number in range(len(columns)) if number not in self._widths]
        self._below = [number for number in moved if not columns[number].drop]
        self._left_out = [columns[number].title for number in moved if columns[number].drop]

    def lines(self) -> list[str]:
        """Return the header, a rule, the rows, and what was left out."""
        titles = [column.title for column in self._columns]
        header = self._row(titles)
        total = sum(self._widths.values()) + _GAP * (len(self._widths) - 1)
        lines = [
            *(click.style(line, bold=True) if self._colours else line for line in header),
            _rule() * min(total, self._width or _LONGEST_RULE),
        ]
        for row in self._cells:
            lines += [*self._row(row), *self._lines_below(row)]
        if self._left_out:
            names = ", ".join(self._left_out)
            text = f"(not shown in {self._width} columns: {names})"
            lines.append(filled([text], self._width, self._colours))
        return lines

    def _fitted(self) -> dict[int, int]:
        needed, least = [], []
        for number, column in enumerate(self._columns):
            texts = [column.title, *(row[number] for row in self._cells)]
            words = [column.title, *(word for text in texts for word in text.split(" "))]
            needed.append(max(map(_length, texts)))
            narrow = max(_NARROWEST, *map(_length, words)) if column.wrap else needed[-1]
            least.append(min(needed[-1], narrow))
        if self._width is None:
            return dict(enumerate(needed))
        stay = list(range(len(needed)))
        while len(stay) > 1 and sum(least[n] + _GAP for n in stay) - _GAP > self._width:
            stay.remove(max(stay[1:], key=lambda number: (self._columns[number].rank, number)))
        if len(stay) == 1:
            least[0] = min(least[0], self._width)  # of words that are longer, lines stick out
        spare = self._width + _GAP - sum(least[n] + _GAP for n in stay)
        widths = {}
        for number in stay:
            more = max(0, min(needed[number] - least[number], spare))
            widths[number] = least[number] + more
            spare -= more
        return widths

    def _row(self, cells: Sequence[str]) -> list[str]:
        """Return the lines of one row: several if a cell continues."""
        pieces = {
            number: broken(cells[number], width).split("\n")
            if _length(cells[number]) > width
            else [cells[number]]
            for number, width in self._widths.items()
        }
        lines = []
        for at in range(max(map(len, pieces.values()))):
            line = ""
            for number, width in self._widths.items():
                text = pieces[number][at] if at < len(pieces[number]) else ""
                space = " " * (width - _length(text))
                if self._colours:
                    text = paint(text, cells[number])
                line += (space + text if self._columns[number].right else text + space) + "  "
            lines.append(line.rstrip())
        return lines

    def _lines_below(self, cells: Sequence[str]) -> list[str]:
        """Return a line of the short cells that have no room in the table, and one of each text."""
        short: list[str] = []
        lines = []
        for number in self._below:
            column, cell = self._columns[number], cells[number]
            if not cell:
                continue
            label = f"{column.title}: ".replace(" ", TOGETHER)
            whole = _INDENT + _length(label) + _length(cell) + len(";")
            if column.wrap or whole > (self._width or whole):
                lines.append([label, cell])
            else:
                short += [*(["; "] if short else []), label, _kept_together(cell)]
        if short:
            lines.insert(0, short)
        margin = " " * _INDENT
        return [
            filled([margin, *parts], self._width, self._colours, indent=_INDENT + 2)
            for parts in lines
        ]


def _kept_together(cell: str) -> str:
    text = cell.replace(" ", TOGETHER)
    return verdict(text, cell.means) if isinstance(cell, Verdict) else text


def _length(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)


def _rule() -> str:
    try:
        "─".encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return "-"
    return "─"
