"""Run `python -m tools.bench [DIR]` to measure how fast batches come, ours and other loaders'.

DIR is a store or a builder's folder; without it large random data (D=768, N=12) is made. Every cell
(a loader, a number of workers, a batch size) runs in a process of its own, in turns with the floor:
`torch.index_select` of the same rows into preallocated outputs. `--quick` takes under a minute.
Measure on a machine that does nothing else.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

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
)
from jasper_mmap.bench.turns import ContenderError, in_own_process
from jasper_mmap.commands.bench import (
    conditions,
    numbers,
    print_conditions,
    report_console,
    table_of,
)
from jasper_mmap.errors import JasperError
from tools.bench.contenders import CONTENDERS, Contender
from tools.bench.inputs import PAIRS, Inputs, drop_from_memory, inputs_of, make_once
from tools.bench.libraries import LIBRARIES
from tools.bench.plot import plot

ALL = {contender.name: contender for contender in (*CONTENDERS, *LIBRARIES)}
QUICK = ("ours", "per-sample")
QUICK_PAIRS = 20_000
RECORD_PAIRS = 20_000
"""As many are stored where each pair brings its negatives' embeddings: 52 KB at D=768, N=12."""
ONE_THREAD = "floor-1"


def _in_own_process(work: Callable[[], object], _folder: Path) -> None:
    in_own_process(work)


def prepared(
    contenders: list[Contender], inputs: Inputs, console: Console, *, fresh: bool
) -> Iterator[Contender | Skipped]:
    """Each contender once its files are written and in memory, or why it is left out."""
    for contender in contenders:
        folder = contender.folder(inputs)
        try:
            if contender.prepare is not None:
                console.print(f"preparing {contender.name} ...", soft_wrap=True)
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
    contenders: list[Contender], inputs: Inputs, workers: tuple[int, ...], batch_size: int
) -> Iterator[Entrant]:
    """All cells of one batch size: the floor of one thread, then each contender."""
    yield Entrant(name=ONE_THREAD, workers=0, open=partial(open_floor, inputs.store, batch_size, 1))
    for contender in contenders:
        for count in workers:
            opened = partial(contender.open, contender.folder(inputs), count, batch_size)
            yield Entrant(name=contender.name, workers=count, open=opened, load=contender.load)


def disk_use(contenders: list[Contender], inputs: Inputs) -> dict[str, dict[str, float]]:
    """What each contender keeps on disk, in all and for a pair; our store stands for its users."""
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
        size = sum(p.stat().st_size for p in own)
        count = min(RECORD_PAIRS, train) if contender.materialises else pairs
        used[contender.name] = {"bytes": size, "pairs": count, "bytes_per_pair": size / count}
    return used


def run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Measure what the options ask for; the answer as plain values."""
    windows = Windows(count=options.windows, seconds=options.seconds)
    before = busy()
    inputs = inputs_of(options.dir, options.cache, options.pairs)
    ready = list(prepared([ALL[n] for n in options.only], inputs, console, fresh=not options.quick))
    skipped = [found for found in ready if isinstance(found, Skipped)]
    contenders = [found for found in ready if isinstance(found, Contender)]
    for one in skipped:
        console.print(f"[yellow]skipped[/] {one.contender}: {one.why}", soft_wrap=True)
    cells = []
    for batch_size in options.batch_sizes:
        wanted = entrants(contenders, inputs, options.workers, batch_size)
        for found in measure(inputs.store, batch_size, wanted, windows):
            where = f"B={batch_size} {found.contender}, {found.workers} workers"
            if isinstance(found, Skipped):
                console.print(f"[yellow]skipped[/] {where}: {found.why}", soft_wrap=True)
                skipped.append(found)
            else:
                console.print(f"{where}: {found.rate:,.0f} samples/s, {found.ratio:.3f}")
                cells.append(found)
    told = conditions(before, busy(), cells)
    disk = disk_use(contenders, inputs)
    show(cells, skipped, disk, told, windows)
    if options.plot:
        names = {c.name: f"{c.name}: {c.what}" for c in contenders} | {
            ONE_THREAD: f"{ONE_THREAD}: the floor, one thread"
        }
        title = f"{told['machine']['cores']} cores, torch {told['machine']['torch']}"
        options.plot.write_text(plot(cells, names, title))
    return {
        **told,
        "command": ["python", "-m", "tools.bench", *sys.argv[1:]],
        "data": {"store": str(inputs.store), "store_id": inputs.store_id},
        "windows": vars(windows),
        "floor_threads": cores(),
        "cells": [cell.to_dict() for cell in cells],
        "disk": disk,
        "skipped": [vars(one) for one in skipped],
    }


def show(
    cells: list[Cell],
    skipped: list[Skipped],
    disk: dict[str, dict[str, float]],
    told: dict[str, Any],
    windows: Windows,
) -> None:
    """The table, what is on disk, what was left out, and under which conditions."""
    console = report_console()
    console.print()
    console.print(table_of(cells))
    console.print()
    for name, used in disk.items():
        part = f" ({used['pairs']:,} pairs)" if ALL[name].materialises else ""
        console.print(
            f"{name:12} {ALL[name].what}: {used['bytes'] / 2**20:,.0f} MB on disk{part},"
            f" {used['bytes_per_pair'] / 1000:.1f} kB a pair",
            soft_wrap=True,
        )
    for one in skipped:
        console.print(f"skipped {one.contender}: {one.why}", soft_wrap=True)
    print_conditions(console, told, windows)


def options_of(arguments: list[str] | None) -> argparse.Namespace:
    """The command line, with defaults that depend on `--quick` filled in."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.bench", description=(__doc__ or "").partition("\n\n")[2]
    )
    parser.add_argument("dir", type=Path, nargs="?")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", help=f"of {','.join(ALL)}")
    parser.add_argument("--workers", type=numbers, default=(0, 2), help="as 0,2,4")
    parser.add_argument("--batch-sizes", type=numbers, help="as 32,512")
    parser.add_argument("--windows", type=int, help="how many are counted")
    parser.add_argument("--seconds", type=float, help="length of a window")
    parser.add_argument("--pairs", type=int, help="of the random data")
    cache = Path(tempfile.gettempdir()) / "jasper-bench"
    parser.add_argument("--cache", type=Path, default=cache, help="kept between runs: %(default)s")
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--plot", type=Path, help="SVG file to write")
    options = parser.parse_args(arguments)
    quick = options.quick
    options.only = options.only.split(",") if options.only else list(QUICK if quick else ALL)
    if unknown := set(options.only) - ALL.keys():
        parser.error(f"--only: {', '.join(sorted(unknown))} is none of {', '.join(ALL)}")
    options.batch_sizes = options.batch_sizes or ((32, 512) if quick else (32, 512, 2048))
    options.windows = options.windows or (3 if quick else 5)
    options.seconds = options.seconds or (0.3 if quick else 1.0)
    options.pairs = options.pairs or (QUICK_PAIRS if quick else PAIRS)
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run as the command line asks."""
    options = options_of(arguments)
    # Said of what other libraries leave to Python's clean-up when their process ends.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")
    try:
        answer = run(options, Console(stderr=True, highlight=False))
    except JasperError as error:
        sys.stderr.write(f"Error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    if options.json:
        options.json.write_text(json.dumps(answer, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
