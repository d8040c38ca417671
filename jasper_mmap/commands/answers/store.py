"""The answers of the commands as text: tables and plain lines on stdout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...console import Column, Verdict, echo, echo_table, echo_warning, verdict
from ...printable import size
from ...rules.names import VARIANTS
from ...store.lint import sentences
from ...store.verify import VerifyReport
from .publications import NOTE_LENGTH


def print_verification(report: VerifyReport) -> None:
    """Print all problems, notes and counts, and a line that summarises them."""
    if report.problems:
        columns = (Column("file"), Column("problem", wrap=True))
        echo_table(columns, ((verdict(p.file, "bad"), p.message) for p in report.problems))
    for note in report.notes:
        echo(f"note: {note}")
    for file in report.renewed:
        echo(f"stamp renewed: {file}")
    _warnings(report.warnings)
    kind = "sizes, headers and index ranges" if report.quick else "every checksum and check"
    echo(
        f"{report.store}: ",
        _soundness(len(report.problems)),
        f"; {kind} of {report.files} files ({size(report.bytes)}) in {report.seconds:.1f} s",
    )


def _soundness(problems: int) -> Verdict:
    if not problems:
        return verdict("sound", "good")
    return verdict(f"{problems} problem{'' if problems == 1 else 's'}", "bad")


def print_summary(summary: dict[str, Any]) -> None:
    """Print the result of `summary.summarise`."""
    generation = summary["generation"]
    echo(f"store {summary['store']}")
    echo(
        f"format version {summary['format_version']}, id {summary['store_id']},"
        f" {size(summary['bytes'])}, converted {summary['created']:.40} by"
        f" {summary['converter']:.80}"
    )
    rows: list[tuple[str, ...]]
    rows = [(a["name"], a["dtype"], _shape(a), size(a["bytes"])) for a in summary["artifacts"]]
    rows += [(t["name"], t["dtype"], _shape(t), "") for t in generation["tables"]]
    _section(("artifact", "dtype", "shape", "size"), rows, (2, 3))

    total = sum(summary["splits"].values())
    rows = [(s, f"{n:,}", f"{n / max(total, 1):.1%}") for s, n in summary["splits"].items()]
    _section(("split", "pairs", "share"), rows, (1, 2))

    rows = [
        (str(p["epoch"]), *(f"{p[variant]:.4f}" for variant in VARIANTS))
        for p in summary["steering_probabilities"]
    ]
    _section(("epoch", *VARIANTS), rows, range(5))

    tiers = summary["tiers"]
    negatives = max(sum(tiers.values()), 1)
    rows = [(tier, f"{n:,}", f"{n / negatives:.1%}") for tier, n in tiers.items()]
    _section(("tier", "negatives", "share"), rows, (1, 2))

    counts = np.array(summary["clusters"])
    echo("")
    echo(
        f"{len(counts)} clusters ({np.count_nonzero(counts == 0)} empty), {counts.min()}-"
        f"{counts.max()} pairs each, median {np.median(counts):g}"
    )
    note = f", note: {generation['note']:.{NOTE_LENGTH}}" if generation["note"] else ""
    echo(
        f"hard negatives: current generation {generation['number']} ({size(generation['bytes'])},"
        f" published {generation['when']:.40} by {generation['by']:.80}{note}),"
        f" {generation['published']} in the history"
    )
    _warnings(summary["warnings"])
    for note in summary["notes"]:
        echo_warning(note)


def _section(header: Sequence[str], rows: list[tuple[str, ...]], right: Sequence[int]) -> None:
    echo("")
    echo_table(header, rows, right=right)


def _warnings(counts: dict[str, int]) -> None:
    for sentence in sentences(counts, {}):
        echo_warning(sentence)


def _shape(artifact: dict[str, Any]) -> str:
    if artifact.get("kind") == "ragged":
        rows, values = artifact["shape"]
        return f"{rows:,} lists, {values:,} values"
    return " x ".join(f"{n:,}" for n in artifact["shape"])
