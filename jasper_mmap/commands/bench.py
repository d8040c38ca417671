"""The command `jasper-mmap bench`: how fast a store's batches come on this machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
from rich import box
from rich.console import Console
from rich.table import Table

from ..bench.machine import busy, cores, machine, was_quiet
from ..bench.measure import (
    Cell,
    Entrant,
    Skipped,
    Windows,
    best,
    floor_spread,
    measure,
    open_ours,
    ratio_text,
    warm_up,
)
from ..bench.turns import ContenderError
from ..console import debug_option
from ..printable import printable

_PIPED_WIDTH: Final = 140
_STEADY: Final = 1.5
"""The floor's fastest window over its slowest, at most, on a quiet machine."""
_COLUMNS: Final = (
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


def table_of(cells: Iterable[Cell]) -> Table:
    """One row a cell."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title in _COLUMNS:
        table.add_column(title, justify="left" if title == "loader" else "right", no_wrap=True)
    for cell in cells:
        table.add_row(
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
    return table


def report_console() -> Console:
    """Wide enough for the table where no terminal says."""
    return Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH, highlight=False)


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


def print_conditions(console: Console, found: dict[str, Any], windows: Windows) -> None:
    """The machine, its load, how often was measured, and a warning if it was not quiet."""
    told, before, after = found["machine"], found["load_before"], found["load_after"]
    console.print(
        f"{told['cpu']}, {told['cores']} cores, {told['memory_mb']:,} MB; {told['system']};"
        f" Python {told['python']}, torch {told['torch']} with {told['threads']} threads,"
        f" numpy {told['numpy']}",
        soft_wrap=True,
    )
    console.print(
        f"medians of {windows.count} windows of {windows.seconds:g} s, in turns with the floor's;"
        f" load average {before['average']:.2f} before, {after['average']:.2f} after;"
        f" cores busy with other programs {before['cores_busy']:.2f} before,"
        f" {after['cores_busy']:.2f} after; the floor's windows differ by a factor of"
        f" {found['floor_spread']:.2f}",
        soft_wrap=True,
    )
    if not found["quiet"]:
        console.print(
            "[bold red]warning:[/] the machine was not quiet (other programs, or its host): these"
            " figures are not its own. What several threads read together suffers most.",
            soft_wrap=True,
        )


def numbers(text: str) -> tuple[int, ...]:
    """ "0,2" as (0, 2); raises ValueError."""
    return tuple(int(part) for part in text.split(","))


def _workers(_context: click.Context, _option: click.Parameter, text: str | None) -> Sequence[int]:
    if text is None:
        return range(cores() + 1)
    try:
        found = numbers(text)
    except ValueError:
        raise click.BadParameter(
            f"expected comma-separated integers, e.g. 0,2, not {text!r}"
        ) from None
    if min(found) < 0:
        raise click.BadParameter(f"numbers of workers must be >= 0, not {min(found)}")
    return found


@click.command()
@click.argument("store", metavar="DIR", type=click.Path(path_type=Path, readable=False))
@click.option("--batch-size", type=click.IntRange(1), default=512, show_default=True)
@click.option(
    "--workers", callback=_workers, help="E.g. 0,2,4.  [default: 0 to the number of cores]"
)
@click.option("--windows", "count", type=click.IntRange(1), default=5, show_default=True)
@click.option(
    "--seconds",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Length of a window.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
@debug_option
def bench(
    store: Path,
    *,
    batch_size: int,
    workers: Sequence[int],
    count: int,
    seconds: float,
    as_json: bool,
) -> None:
    """Measure how fast batches of the store in DIR come, and with how many workers best.

    The floor is what torch's index_select of the same rows into preallocated memory takes, measured
    in turns with the loader. The trainer does nothing here: one that is busy gains from workers
    even where none is the fastest. Needs a machine that does nothing else.
    """
    windows = Windows(count=count, seconds=seconds)
    entrants = [
        Entrant(name="ours", workers=n, open=partial(open_ours, store, n, batch_size))
        for n in workers
    ]
    before = busy()
    warm_up(store)
    found = list(measure(store, batch_size, entrants, windows))
    cells = [cell for cell in found if isinstance(cell, Cell)]
    told = conditions(before, busy(), cells)
    failed = [cell for cell in found if isinstance(cell, Skipped)]
    if not cells:
        raise ContenderError(failed[0].why)
    chosen = best(cells)
    if as_json:
        answer = {
            **told,
            "cells": [cell.to_dict() for cell in cells],
            "skipped": [vars(cell) for cell in failed],
            "best_workers": chosen.workers,
        }
        click.echo(json.dumps(answer, indent=2))
        return
    console = report_console()
    console.print(table_of(cells))
    for cell in failed:
        why = printable(f"not measured: {cell.workers} workers: {cell.why}")
        console.print(why, markup=False, soft_wrap=True)
    print_conditions(console, told, windows)
    console.print(
        f"best here: num_workers={chosen.workers}, {chosen.rate:,.0f} samples/s,"
        f" {chosen.ratio:.2f} of the floor",
        soft_wrap=True,
    )
