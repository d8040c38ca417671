"""What a benchmark tells: its cells as a table, and under which conditions they were measured."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from .machine import machine, was_quiet
from .measure import Cell, Windows, floor_spread, ratio_text

_STEADY: Final = 1.5
"""The floor's fastest window over its slowest, at most, on a quiet machine."""
HEADER: Final = (
    "B",
    "loader",
    "workers",
    "samples/s",
    "lowest to highest",
    "floor",
    "ratio",
    "open ms",
    "first ms",
    "parent MB",
    "workers PSS",
    "USS MB",
)
RIGHT: Final = tuple(n for n, title in enumerate(HEADER) if title != "loader")
"""The columns of numbers."""


def row_of(cell: Cell) -> tuple[str, ...]:
    """A cell as a row below `HEADER`."""
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
        f"{cell.parent_rss_mb:,.0f}",
        f"{cell.workers_pss_mb:,.0f}" if cell.workers else "",
        f"{cell.workers_uss_mb:,.0f}" if cell.workers else "",
    )


def conditions(
    before: dict[str, float], after: dict[str, float], cells: Iterable[Cell]
) -> dict[str, Any]:
    """What the figures depend on, and whether something disturbed them."""
    spread = floor_spread(cells)
    return {
        "machine": machine(),
        "load_before": before,
        "load_after": after,
        "floor_spread": spread,
        "quiet": was_quiet(before, after) and spread <= _STEADY,
    }


def sentences_of(found: dict[str, Any], windows: Windows) -> list[str]:
    """The machine, its load, how often was measured, and a warning if it was not quiet."""
    about, before, after = found["machine"], found["load_before"], found["load_after"]
    lines = [
        f"{about['cpu']}, {about['cores']} cores, {about['memory_mb']:,} MB; {about['system']};"
        f" Python {about['python']}, torch {about['torch']} with {about['threads']} threads,"
        f" numpy {about['numpy']}",
        f"medians of {windows.count} windows of {windows.seconds:g} s, in turns with the floor's;"
        f" load average {before['average']:.2f} before, {after['average']:.2f} after;"
        f" cores busy with other programs {before['cores_busy']:.2f} before,"
        f" {after['cores_busy']:.2f} after; the floor's windows differ by a factor of"
        f" {found['floor_spread']:.2f}",
    ]
    if not found["quiet"]:
        lines.append(
            "warning: the machine was not quiet (other programs, or its host): these figures are"
            " not its own. What several threads read together suffers most."
        )
    return lines
