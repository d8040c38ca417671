"""Run `python -m tools.bench [DIR]` to compare the throughput of our loader and of others.

DIR is a store or a builder's folder; without it large random data (D=768, N=12) is made. Every cell
(a loader, a number of workers, a batch size) runs in its own process, in turns with the floor:
`torch.index_select` of the same rows into preallocated outputs. `--quick` takes under a minute.
Measure on an idle machine.
"""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

from jasper_mmap import JASPERSteeringDataset
from jasper_mmap.bench.machine import busy, cores
from jasper_mmap.bench.measure import (
    SPLIT,
    Cell,
    Entrant,
    Skipped,
    Windows,
    measure,
    open_floor,
    warm_up,
    workers_text,
)
from jasper_mmap.bench.report import NOT_QUIET, conditions, sentences_of, table_of
from jasper_mmap.bench.turns import ContenderError, in_own_process
from jasper_mmap.console import (
    PATH,
    Command,
    FiniteRange,
    debug_option,
    echo,
    echo_table,
    echo_warning,
    integers,
    shown_progress,
)
from jasper_mmap.console import run as run_command
from jasper_mmap.printable import size
from tools.bench.contenders import CONTENDERS, Contender
from tools.bench.inputs import PAIRS, Inputs, drop_from_memory, inputs_of, make_once
from tools.bench.libraries import LIBRARIES
from tools.bench.plot import check_plotting, plot

ALL = {contender.name: contender for contender in (*CONTENDERS, *LIBRARIES)}
QUICK = ("ours", "per-sample")
QUICK_PAIRS = 20_000
RECORD_PAIRS = 20_000
"""Limit of the pairs stored with their negatives' embeddings: 52 KB each at D=768, N=12."""
ONE_THREAD = "floor-1"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to measure, on which data."""

    dir: Path | None
    cache: Path
    pairs: int
    contenders: Sequence[Contender]
    workers: Sequence[int]
    batch_sizes: Sequence[int]
    windows: Windows
    fresh: bool
    """Drop the files from the page cache first and read them again."""


def _in_own_process(work: Callable[[], object], _folder: Path) -> None:
    in_own_process(work)


def prepared(
    contenders: Sequence[Contender], inputs: Inputs, *, fresh: bool
) -> Iterator[Contender | Skipped]:
    """Yield each contender after its files are written and in memory, or why it is skipped."""
    for contender in contenders:
        folder = contender.folder(inputs)
        try:
            if contender.prepare is not None:
                echo(f"preparing {contender.name} ...", err=True)
                work = partial(contender.prepare, folder, inputs.store, RECORD_PAIRS)
                made_from = f"{inputs.store_id} {RECORD_PAIRS}"
                make_once(folder, made_from, partial(_in_own_process, work))
        except ContenderError as error:
            yield Skipped(contender=contender.name, workers=0, batch_size=0, why=str(error))
            continue
        if fresh:
            drop_from_memory(folder)
        warm_up(folder)
        yield contender


def entrants(
    contenders: list[Contender], inputs: Inputs, workers: Sequence[int], batch_size: int
) -> Iterator[Entrant]:
    """The entrants of one batch size: the floor with one thread, then each contender."""
    yield Entrant(name=ONE_THREAD, workers=0, open=partial(open_floor, inputs.store, batch_size, 1))
    for contender in contenders:
        for count in workers:
            opened = partial(contender.open, contender.folder(inputs), count, batch_size)
            yield Entrant(name=contender.name, workers=count, open=opened, load=contender.load)


def disk_use(contenders: list[Contender], inputs: Inputs) -> dict[str, dict[str, float]]:
    """The bytes of each contender on disk, total and per pair; our store counts for all that read
    it."""
    with JASPERSteeringDataset(inputs.store, SPLIT) as dataset:
        pairs, train = len(dataset.hard_negatives), len(dataset)
    used = {}
    for contender in contenders:
        folder = contender.folder(inputs)
        own = [p for p in folder.rglob("*") if p.is_file()]
        if folder == inputs.pt:  # a store may lie beside the .pt files
            own = [p for p in own if p.suffix == ".pt"]
        elif folder == inputs.store:
            own = [p for p in own if p.suffix != ".pt"]
        stored = sum(p.stat().st_size for p in own)
        count = min(RECORD_PAIRS, train) if contender.materialises else pairs
        used[contender.name] = {"bytes": stored, "pairs": count, "bytes_per_pair": stored / count}
    return used


def run(settings: Settings) -> tuple[list[Cell], dict[str, Any]]:
    """Measure and print the figures; return the cells, and the answer as plain values."""
    before = busy()
    inputs = inputs_of(settings.dir, settings.cache, settings.pairs)
    ready = list(prepared(settings.contenders, inputs, fresh=settings.fresh))
    skipped = [one for one in ready if isinstance(one, Skipped)]
    contenders = [one for one in ready if isinstance(one, Contender)]
    for one in skipped:
        echo(f"skipped {one.contender}: {one.why}", err=True)
    cells = []
    for batch_size in settings.batch_sizes:
        entered = list(entrants(contenders, inputs, settings.workers, batch_size))
        with shown_progress(unit="windows") as progress:
            for cell in measure(inputs.store, batch_size, entered, settings.windows, progress):
                where = f"B={batch_size} {cell.contender}, {workers_text(cell.workers)}"
                if isinstance(cell, Skipped):
                    echo(f"skipped {where}: {cell.why}", err=True)
                    skipped.append(cell)
                else:
                    echo(f"{where}: {cell.rate:,.0f} samples/s, {cell.ratio:.3f}", err=True)
                    cells.append(cell)
    circumstances = conditions(before, busy(), cells)
    disk = disk_use(contenders, inputs)
    show(cells, skipped, disk)
    for sentence in sentences_of(circumstances, settings.windows):
        echo(sentence)
    if not circumstances["quiet"]:
        echo_warning(NOT_QUIET)
    return cells, {
        **circumstances,
        "command": ["python", "-m", "tools.bench", *sys.argv[1:]],
        "data": {"store": str(inputs.store), "store_id": inputs.store_id},
        "windows": vars(settings.windows),
        "floor_threads": cores(),
        "cells": [cell.to_dict() for cell in cells],
        "disk": disk,
        "skipped": [vars(one) for one in skipped],
    }


def show(cells: list[Cell], skipped: list[Skipped], disk: dict[str, dict[str, float]]) -> None:
    """Print the table, the sizes on disk, and the skipped contenders."""
    echo("")
    table = table_of(cells)
    echo_table(table.header, table.rows, table.right, drop=table.drop)
    echo("")
    for name, used in disk.items():
        part = f" ({used['pairs']:,} pairs)" if ALL[name].materialises else ""
        echo(
            f"{name:12} {ALL[name].what}: {size(used['bytes'])} on disk{part},"
            f" {size(used['bytes_per_pair'])} a pair"
        )
    for one in skipped:
        echo(f"skipped {one.contender}: {one.why}")


def _contenders(
    _context: click.Context, _option: click.Parameter, text: str | None
) -> list[Contender] | None:
    if text is None:
        return None
    names = text.split(",")
    if unknown := set(names) - ALL.keys():
        raise click.BadParameter(
            f"unknown contender {', '.join(sorted(unknown))}: choose from {', '.join(ALL)}"
        )
    return [ALL[name] for name in names]


@click.command(cls=Command, help=(__doc__ or "").partition("\n\n")[2])
@click.argument("folder", metavar="[DIR]", type=PATH, required=False)
@click.option("--quick", is_flag=True, help="Few pairs, few contenders, short windows.")
@click.option("--only", callback=_contenders, help=f"Some of {','.join(ALL)}.")
@click.option(
    "--workers", callback=integers(0), default="0,2", show_default=True, help="E.g. 0,2,4."
)
@click.option("--batch-sizes", callback=integers(1), help="E.g. 32,512.")
@click.option("--windows", "count", type=click.IntRange(1), help="Number of measuring windows.")
@click.option("--seconds", type=FiniteRange(0, min_open=True), help="Length of a window.")
@click.option("--pairs", type=click.IntRange(1), help="Number of pairs of the random data.")
@click.option(
    "--cache",
    type=PATH,
    default=Path(tempfile.gettempdir()) / "jasper-bench",
    show_default=True,
    help="Folder for data that is kept between runs.",
)
@click.option("--json", "json_file", type=PATH, help="JSON file to write.")
@click.option("--plot", "plot_file", type=PATH, help="SVG file to write.")
@debug_option
def command(
    folder: Path | None,
    *,
    quick: bool,
    only: list[Contender] | None,
    workers: tuple[int, ...],
    batch_sizes: tuple[int, ...] | None,
    count: int | None,
    seconds: float | None,
    pairs: int | None,
    cache: Path,
    json_file: Path | None,
    plot_file: Path | None,
) -> None:
    """Measure, print the table, and write the requested files."""
    if plot_file is not None:
        check_plotting()
    # Silences warnings about resources that other libraries do not release.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")
    settings = Settings(
        dir=folder,
        cache=cache,
        pairs=pairs or (QUICK_PAIRS if quick else PAIRS),
        contenders=only or [ALL[name] for name in (QUICK if quick else ALL)],
        workers=workers,
        batch_sizes=batch_sizes or ((32, 512) if quick else (32, 512, 2048)),
        windows=Windows(
            count=count or (3 if quick else 5), seconds=seconds or (0.3 if quick else 1.0)
        ),
        fresh=not quick,
    )
    cells, answer = run(settings)
    if plot_file is not None:
        names = {one.name: f"{one.name}: {one.what}" for one in settings.contenders} | {
            ONE_THREAD: f"{ONE_THREAD}: the floor, one thread"
        }
        about = answer["machine"]
        title = f"{about['cores']} cores, torch {about['torch']}"
        plot(cells, names, title, plot_file)
    if json_file is not None:
        json_file.write_text(json.dumps(answer, indent=2))


if __name__ == "__main__":
    run_command(command)
