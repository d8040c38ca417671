"""The answers of the commands as text: tables and plain lines on stdout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from ..console import echo, echo_json, echo_table
from ..negatives.publish import shares
from ..printable import size
from ..rules.names import VARIANTS
from ..similarity.change.slots import short_form
from ..store.lint import MEANING, sentences, suspicion
from ..store.manifest import read_manifest
from ..store.pointer import Pointer, generations_on_disk, read_pointer
from ..store.verify import VerifyReport
from .effects import changed_slots, slots_to_dict

_NOTE_LENGTH: Final = 160
"""Characters of a note that are printed."""


def print_verification(report: VerifyReport) -> None:
    """Print all problems, notes and counts, and a line that summarises them."""
    if report.problems:
        echo_table(("file", "problem"), ((p.file, p.message) for p in report.problems), fold=True)
    for note in report.notes:
        echo(f"note: {note}")
    for file in report.renewed:
        echo(f"stamp renewed: {file}")
    _warnings(report.warnings)
    kind = "sizes, headers and index ranges" if report.quick else "every checksum and check"
    many = "" if len(report.problems) == 1 else "s"
    verdict = f"{len(report.problems)} problem{many}" if report.problems else "sound"
    echo(
        f"{report.store}: {verdict}; {kind} of {report.files} files"
        f" ({size(report.bytes)}) in {report.seconds:.1f} s"
    )


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
    note = f", note: {generation['note']:.{_NOTE_LENGTH}}" if generation["note"] else ""
    echo(
        f"hard negatives: current generation {generation['number']} ({size(generation['bytes'])},"
        f" published {generation['when']:.40} by {generation['by']:.80}{note}),"
        f" {generation['published']} in the history"
    )
    _warnings(summary["warnings"])
    for note in summary["notes"]:
        echo(f"warning: {note}")


def _section(header: Sequence[str], rows: list[tuple[str, ...]], right: Sequence[int]) -> None:
    echo("")
    echo_table(header, rows, right=right)


def _warnings(counts: dict[str, int]) -> None:
    for sentence in sentences(counts, {}):
        echo(f"warning: {sentence}")


def _shape(artifact: dict[str, Any]) -> str:
    if artifact.get("kind") == "ragged":
        rows, values = artifact["shape"]
        return f"{rows:,} lists, {values:,} values"
    return " x ".join(f"{n:,}" for n in artifact["shape"])


def print_publication(store: Path, generation: int, *, as_json: bool) -> None:
    """Print what was published as `generation`, after a warning if it looks like a mistake."""
    pointer, n_pairs = _pointer_and_pairs(store)
    entry = _entry(pointer, generation)
    warning = suspicion(shares(pointer.of(generation).lint, n_pairs))
    slots = changed_slots(store, pointer, generation)
    if as_json:
        echo_json({**entry, "slots": slots_to_dict(slots), "warning": warning})
        return
    if warning is not None:
        echo(f"warning: {warning}")
    echo("; ".join((f"published generation {generation}", *_counts(entry, n_pairs))))
    if slots is not None:
        echo(short_form(slots))


def print_history(store: Path, *, as_json: bool) -> None:
    """Print all generations in the history."""
    pointer, n_pairs = _pointer_and_pairs(store)
    on_disk = generations_on_disk(store)
    shown = [
        {
            **_entry(pointer, e["generation"]),
            "in_force": e["generation"] == pointer.generation,
            "on_disk": e["generation"] in on_disk,
        }
        for e in pointer.history
    ]
    if as_json:
        echo_json(shown)
        return
    for entry in shown:
        state = "current" if entry["in_force"] else "" if entry["on_disk"] else "removed"
        about = "; ".join(filter(None, (entry["note"][:_NOTE_LENGTH], *_counts(entry, n_pairs))))
        echo(
            f"{entry['generation']:>6}  {entry['when'][:19]}  {size(entry['bytes']):>10}"
            f"  {state:<8}  {about}"
        )


def _pointer_and_pairs(store: Path) -> tuple[Pointer, int]:
    manifest = read_manifest(store)
    return read_pointer(store), manifest.sizes["N_p"]


def _entry(pointer: Pointer, generation: int) -> dict[str, Any]:
    pointer_then = pointer.of(generation)
    return {
        "generation": pointer_then.generation,
        "when": pointer_then.when,
        "by": pointer_then.by,
        "note": pointer_then.note,
        "bytes": pointer_then.bytes,
        "changed_rows": pointer_then.changed_rows,
        **pointer_then.lint,
    }


def _counts(entry: dict[str, Any], n_pairs: int) -> Iterator[str]:
    changed = entry["changed_rows"]
    if changed is not None:
        yield f"{changed} of {n_pairs} rows changed"
    portions = {name: entry[name] / n_pairs for name in MEANING if name in entry}
    yield from sentences(entry, portions)
