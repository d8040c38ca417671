"""The report of a benchmark: a table of its cells, and the conditions of the measurement."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from ..printable import size
from .machine import MB, machine, was_quiet
from .measure import Cell, Windows, floor_spread, ratio_text

NOT_QUIET: Final = (
    "the machine was not quiet (other programs, or its host), so these figures are unreliable, most"
    " of all those of several threads."
)
"""The warning for conditions that are not quiet."""
_STEADY: Final = 1.5
"""Limit of the floor's fastest window over its slowest on a quiet machine."""
_HEADER: Final = (
    "B",
    "loader",
    "workers",
    "samples/s",
    "lowest to highest",
    "floor",
    "ratio",
    "open ms",
    "first ms",
)
_LESS: Final = ("open ms", "first ms")
"""Columns that a narrow terminal may lack, with those of memory."""
_MEMORY: Final = ("parent", "workers PSS", "USS")


class Figures(NamedTuple):
    """Rows of text below a header; `right` has columns of numbers, `drop` those left out first."""

    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    right: tuple[int, ...]
    drop: tuple[int, ...]


def table_of(cells: Sequence[Cell]) -> Figures:
    """A row for each cell; memory columns only if it is known."""
    known = any(cell.memory for cell in cells)
    header = _HEADER + _MEMORY if known else _HEADER
    rows = [_figures(cell) + (_memory(cell) if known else ()) for cell in cells]
    right = tuple(n for n, title in enumerate(header) if title != "loader")
    drop = tuple(n for n, title in enumerate(header) if title in _LESS + _MEMORY)
    return Figures(header, rows, right, drop)


def _figures(cell: Cell) -> tuple[str, ...]:
    return (
        str(cell.batch_size),
        cell.contender,
        str(cell.workers),
        f"{cell.rate:,.0f}",
        f"{min(cell.windows):,.0f} to {max(cell.windows):,.0f}",
        f"{cell.floor:,.0f}",
        ratio_text(cell.ratio),
        f"{cell.open_s * 1e3:,.0f}",
        f"{cell.first_batch_s * 1e3:,.0f}",
    )


def _memory(cell: Cell) -> tuple[str, ...]:
    if cell.memory is None:
        return ("", "", "")
    parent, pss, uss = map(size, cell.memory)
    return (parent, pss, uss) if cell.workers else (parent, "", "")


def conditions(
    before: dict[str, float | None], after: dict[str, float | None], cells: Iterable[Cell]
) -> dict[str, Any]:
    """The conditions that the figures depend on, and whether the machine was quiet."""
    spread = floor_spread(cells)
    return {
        "machine": machine(),
        "load_before": before,
        "load_after": after,
        "floor_spread": spread,
        "quiet": was_quiet(before, after) and spread <= _STEADY,
    }


def sentences_of(answer: dict[str, Any], windows: Windows) -> list[str]:
    """Sentences about the machine, its load and the windows."""
    about, before, after = answer["machine"], answer["load_before"], answer["load_after"]
    return [
        f"{about['cpu']}, {about['cores']} cores, {size(about['memory_mb'] * MB)};"
        f" {about['system']}; Python {about['python']}, torch {about['torch']} with"
        f" {about['threads']} threads, numpy {about['numpy']}",
        f"{windows_text(windows)}, in turns with the floor's;"
        f" load average {before['average']:.2f} before, {after['average']:.2f} after;"
        f" {_busy_text(before, after)}; the floor's windows differ by a factor of"
        f" {answer['floor_spread']:.2f}",
    ]


def windows_text(windows: Windows) -> str:
    """What the figures are medians of."""
    if windows.count == 1:
        return f"one window of {windows.seconds:g} s"
    return f"medians of {windows.count} windows of {windows.seconds:g} s"


def _busy_text(before: dict[str, Any], after: dict[str, Any]) -> str:
    if before["cores_busy"] is None:
        return "the load of other programs and memory are unknown without psutil"
    return (
        f"cores busy with other programs {before['cores_busy']:.2f} before,"
        f" {after['cores_busy']:.2f} after"
    )
