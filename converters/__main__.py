"""The command `jasper-convert`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from jasper_mmap.console import Command, answering, debug_option, run
from jasper_mmap.printable import printable
from jasper_mmap.rules.names import NARROW_DTYPES, SOURCE
from jasper_mmap.store.lint import sentences, suspicion

from .conversion import convert
from .conversion_report import ConversionReport
from .export import export_pt

_LINE_INTERVAL_S = 5.0
_FOLDER = click.Path(path_type=Path, readable=False)


@click.command(
    cls=Command,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit status: 0 done, 1 failed (stderr says why, a line a problem), 2 wrong usage, 130"
    " interrupted.",
)
@click.argument("src", type=_FOLDER)
@click.argument("dst", type=_FOLDER, required=False)
@click.option(
    "--dtype",
    type=click.Choice([*NARROW_DTYPES, SOURCE]),
    help="Store questions, sources and steering narrower (the report states the cosine error), or"
    " as they come again; without it as asked for before.",
)
@click.option("--force", is_flag=True, help="Write everything, also what did not change.")
@click.option(
    "--allow-nonfinite", is_flag=True, help="Keep NaN, Inf and values infinite as float32."
)
@click.option("--allow-equal", is_flag=True, help="Take negatives and tiers of equal values.")
@click.option("--to-pt", is_flag=True, help="Convert back: SRC is a store, DST gets .pt files.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@debug_option
def command(
    src: Path,
    dst: Path | None,
    *,
    dtype: str | None,
    force: bool,
    allow_nonfinite: bool,
    allow_equal: bool,
    to_pt: bool,
    as_json: bool,
) -> None:
    """Convert SRC, a builder's folder of .pt files, into a store for jasper_mmap.

    The store is written to DST, or beside the .pt files. Everything is checked on the way. Run it
    again after a change: only what changed is written, and an interrupted run is completed. An
    old store stays in service until the new one is whole.

    \b
    Examples:
      jasper-convert data/built                     beside the .pt files
      jasper-convert data/built data/store          into another folder
      jasper-convert data/built data/store --dtype float16
      jasper-convert data/store data/back --to-pt   back to .pt files
    """
    if to_pt:
        if dst is None:
            raise click.UsageError("--to-pt needs DST, the folder for the .pt files.")
        if dtype or force or allow_nonfinite or allow_equal:
            raise click.UsageError(
                "--to-pt goes with none of --dtype, --force, --allow-nonfinite, --allow-equal."
            )
        paths = export_pt(src, dst)
        _print(as_json, {"files": [str(p) for p in paths]}, [f"{dst}: {len(paths)} files written"])
        return
    with answering(), _shown_progress() as progress:
        report = convert(
            src,
            dst,
            embeddings_dtype=dtype,
            allow_nonfinite=allow_nonfinite,
            allow_equal=allow_equal,
            force=force,
            progress=progress,
        )
    warning = suspicion(report.shares)
    first = [] if warning is None else [f"warning: {warning}"]
    _print(as_json, {**report.to_dict(), "warning": warning}, first + _lines(report))


def _print(as_json: bool, value: dict[str, Any], lines: list[str]) -> None:
    click.echo(json.dumps(value, indent=2) if as_json else "\n".join(map(printable, lines)))


def _lines(report: ConversionReport) -> list[str]:
    written, total = len(report.written), len(report.written) + len(report.left_alone)
    lines = [
        f"{report.store}: {written} of {total} artifacts written"
        f" ({report.bytes_written / 2**20:.1f} MiB in {report.seconds:.1f} s),"
        f" {len(report.left_alone)} unchanged; generation {report.generation} of negatives"
    ]
    lines += [f"computed, since its .pt file is missing: {name}" for name in report.derived]
    lines += [f"warning: {sentence}" for sentence in sentences(report.warnings, report.shares)]
    lines += [f"warning: {note}" for note in report.notes]
    lines += [
        f"cosine error of {name}: p50 {e['p50']:.1e}, p99 {e['p99']:.1e}, max {e['max']:.1e}"
        for name, e in report.cosine_error.items()
    ]
    return lines


@contextmanager
def _shown_progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on a terminal, a line for each artifact elsewhere; both on stderr."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _line_by_line()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        shown = bar.add_task("checking", total=None)

        def advance(name: str, done: int, total: int) -> None:
            bar.update(shown, description=name, completed=done, total=total)

        yield advance


def _line_by_line() -> Callable[[str, int, int], None]:
    started = told = time.monotonic()
    last = ""

    def advance(name: str, done: int, total: int) -> None:
        nonlocal told, last
        now = time.monotonic()
        if name != last or now - told >= _LINE_INTERVAL_S:
            told, last = now, name
            speed = done / 2**20 / max(now - started, 1e-9)
            share = done / max(total, 1)
            line = f"{share:4.0%} of {total / 2**20:.1f} MiB, {speed:.0f} MiB/s: {name}"
            click.echo(line, err=True)

    return advance


def main() -> None:
    """Entry point of the console script."""
    run(command)


if __name__ == "__main__":
    main()
