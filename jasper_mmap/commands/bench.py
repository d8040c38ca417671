"""The command `jasper-mmap bench`: the throughput of a store's batches on this machine.

It imports the rest of the package when it is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click

from ..console import (
    FiniteRange,
    debug_option,
    echo,
    echo_json,
    echo_table,
    echo_warning,
    integers,
    json_option,
    shown_progress,
    store_argument,
    verdict,
)


@click.command()
@store_argument
@click.option("--batch-size", type=click.IntRange(1), default=512, show_default=True)
@click.option(
    "--workers",
    callback=integers(0),
    help="Numbers of workers to measure, e.g. 0,2,4.  [default: 0 to the number of cores]",
)
@click.option("--windows", "count", type=click.IntRange(1), default=5, show_default=True)
@click.option(
    "--seconds",
    type=FiniteRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Length of a measuring window.",
)
@click.option(
    "--step-ms",
    type=FiniteRange(0, 10_000, min_open=True),
    help="Say whether data would be the limit of a training step of this length.",
)
@json_option()
@debug_option
def bench(
    store: Path,
    *,
    batch_size: int,
    workers: Sequence[int] | None,
    count: int,
    seconds: float,
    step_ms: float | None,
    as_json: bool,
) -> None:
    """Measure the throughput of a store's batches.

    Finds the best number of workers. The floor is torch's index_select of the same rows into
    preallocated memory, measured in turns with the loader. No training happens here: a busy trainer
    gains from workers even if 0 workers are the fastest. Run it on an idle machine.

    With --step-ms, a training is played whose step leaves the cores free, as one on a GPU does.
    Data is its limit if waiting takes more than 5 % of the time.
    """
    from ..bench.machine import busy, cores
    from ..bench.measure import Cell, Entrant, Skipped, Windows, best, measure, open_ours, warm_up
    from ..bench.report import NOT_QUIET, conditions, sentences_of, table_of
    from ..bench.step import answer_of, measure_waiting
    from ..bench.turns import ContenderError

    windows = Windows(count=count, seconds=seconds)
    entrants = [
        Entrant(name="ours", workers=n, open=partial(open_ours, store, n, batch_size))
        for n in (range(cores() + 1) if workers is None else workers)
    ]
    before = busy()
    with shown_progress() as progress:
        warm_up(store, progress)
    with shown_progress(unit="windows") as progress:
        measured = list(measure(store, batch_size, entrants, windows, progress))
    cells = [cell for cell in measured if isinstance(cell, Cell)]
    circumstances = conditions(before, busy(), cells)
    failed = [cell for cell in measured if isinstance(cell, Skipped)]
    if not cells:
        raise ContenderError(failed[0].why)
    chosen = best(cells)
    step = None
    if step_ms is not None:
        with shown_progress(unit="settings") as progress:
            waiting = measure_waiting(
                store, batch_size, step_ms / 1e3, cells, count * seconds, progress=progress
            )
        step = answer_of(waiting, batch_size)
    if as_json:
        echo_json(
            {
                **circumstances,
                "cells": [cell.to_dict() for cell in cells],
                "skipped": [vars(cell) for cell in failed],
                "best_workers": chosen.workers,
                **({} if step is None else {"step": step}),
            }
        )
        return
    table = table_of(cells)
    echo_table(table.header, table.rows, table.right, drop=table.drop)
    for cell in failed:
        echo(verdict("not measured", "bad"), f": {cell.workers} workers: {cell.why}")
    for sentence in sentences_of(circumstances, windows):
        echo(sentence)
    if not circumstances["quiet"]:
        echo_warning(NOT_QUIET)
    echo(
        "best here: ",
        verdict(f"num_workers={chosen.workers}", "good"),
        f", {chosen.rate:,.0f} samples/s, {chosen.ratio:.2f} of the floor",
    )
    if step is not None:
        echo(step["sentence"])
