"""Reports on a terminal or in a pipe: tables and plain lines on stdout."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..printable import printable
from ..rules.names import VARIANTS
from ..store.lint import sentences
from ..store.verify import VerifyReport

NOTE_LENGTH: Final = 160
"""Characters of a note that are shown."""
_PIPED_WIDTH: Final = 140
"""Characters a line may have where no terminal says; paths are never folded."""


def print_verification(report: VerifyReport) -> None:
    """All problems, notes and counts, and one line that sums them up."""
    console = _console()
    if report.problems:
        console.print(
            _table(("file", "problem"), ((p.file, p.message) for p in report.problems), fold=True)
        )
    for note in report.notes:
        _line(console, f"note: {note}")
    for file in report.renewed:
        _line(console, f"stamp renewed: {file}")
    _warnings(console, report.warnings)
    kind = "sizes, headers and index ranges" if report.quick else "every checksum and check"
    many = "" if len(report.problems) == 1 else "s"
    verdict = f"{len(report.problems)} problem{many}" if report.problems else "sound"
    _line(
        console,
        f"{report.store}: {verdict}; {kind} of {report.files} files"
        f" ({size(report.bytes)}) in {report.seconds:.1f} s",
    )


def print_summary(summary: dict[str, Any]) -> None:
    """What `summary.summarise` put together."""
    console = _console()
    generation = summary["generation"]
    _line(console, f"store {summary['store']}")
    _line(
        console,
        f"format version {summary['format_version']}, id {summary['store_id']},"
        f" {size(summary['bytes'])}, converted {summary['created']:.40} by"
        f" {summary['converter']:.80}",
    )
    rows: list[tuple[str, ...]]
    rows = [(a["name"], a["dtype"], _shape(a), size(a["bytes"])) for a in summary["artifacts"]]
    rows += [(t["name"], t["dtype"], _shape(t), "") for t in generation["tables"]]
    _section(console, _table(("artifact", "dtype", "shape", "size"), rows, right=(2, 3)))

    total = sum(summary["splits"].values())
    rows = [(s, f"{n:,}", f"{n / max(total, 1):.1%}") for s, n in summary["splits"].items()]
    _section(console, _table(("split", "pairs", "share"), rows, right=(1, 2)))

    rows = [
        (str(p["epoch"]), *(f"{p[variant]:.4f}" for variant in VARIANTS))
        for p in summary["steering_probabilities"]
    ]
    _section(console, _table(("epoch", *VARIANTS), rows, right=range(5)))

    tiers = summary["tiers"]
    negatives = max(sum(tiers.values()), 1)
    rows = [(tier, f"{n:,}", f"{n / negatives:.1%}") for tier, n in tiers.items()]
    _section(console, _table(("tier", "negatives", "share"), rows, right=(1, 2)))

    console.print()
    counts = np.array(summary["clusters"])
    _line(
        console,
        f"{len(counts)} clusters ({np.count_nonzero(counts == 0)} empty), {counts.min()}-"
        f"{counts.max()} pairs each, median {np.median(counts):g}",
    )
    note = f", note: {generation['note']:.{NOTE_LENGTH}}" if generation["note"] else ""
    _line(
        console,
        f"hard negatives: generation {generation['number']} in force ({size(generation['bytes'])},"
        f" published {generation['when']:.40} by {generation['by']:.80}{note}),"
        f" {generation['published']} in the history",
    )
    _warnings(console, summary["warnings"])
    for note in summary["notes"]:
        _line(console, f"warning: {note}")


def _warnings(console: Console, counts: dict[str, int]) -> None:
    for sentence in sentences(counts, {}):
        _line(console, f"warning: {sentence}")


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH)


def _section(console: Console, table: Table) -> None:
    console.print()
    console.print(table)


def _line(console: Console, text: str) -> None:
    # As it stands: neither folded, nor coloured, nor searched for [markup].
    console.print(Text(printable(text)), soft_wrap=True)


def _table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Iterable[int] = (),
    fold: bool = False,
) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for number, title in enumerate(header):
        table.add_column(
            title,
            justify="right" if number in right else "left",
            overflow="fold" if fold else "ellipsis",
            no_wrap=not fold,
        )
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def _shape(artifact: dict[str, Any]) -> str:
    if artifact.get("kind") == "ragged":
        rows, values = artifact["shape"]
        return f"{rows:,} lists, {values:,} values"
    return " x ".join(f"{n:,}" for n in artifact["shape"])


def size(n_bytes: float) -> str:
    """A number of bytes as people read it."""
    for unit in ("B", "KiB", "MiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} GiB"
