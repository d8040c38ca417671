"""What was published, which generations there are, and which were removed, as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from ...console import Column, echo, echo_json, echo_table, echo_warning, verdict
from ...errors import JasperError
from ...negatives.publish import shares
from ...negatives.retention import Pruned
from ...printable import size
from ...rules.schema import NEGATIVES
from ...similarity.change.slots import short_form
from ...similarity.reports.summary import KEY, summary_in
from ...store.lint import MEANING, sentences, suspicion
from ...store.manifest import read_manifest
from ...store.pointer import Pointer, generations_on_disk, read_pointer
from .effects import changed_slots, slots_to_dict

NOTE_LENGTH: Final = 160
"""Characters of a note that are printed."""
_UNKNOWN: Final = "-"
"""What versions before 0.2.0 did not record, or does not exist."""
_UNSUITABLE: Final = {
    "own_source_rows": "with the own source",
    "false_negative_rows": "with another right source",
    "repeat_rows": "with a source twice",
}
"""Name of a count of rows -> what they are, in few words."""

_COLUMNS: Final = (
    Column("generation", right=True),
    Column("published (UTC)", rank=1),
    Column("state"),
    Column("size", right=True, rank=3),
    Column("rows kept", right=True, rank=2),
    Column("rows replaced", right=True, rank=2),
    Column("who", rank=4),
    Column("from", wrap=True, rank=5),
    Column("unsuitable rows", wrap=True, rank=6),
    Column("too similar", wrap=True, rank=7),
    Column("note", wrap=True, rank=8),
)


def current_number(store: Path) -> int:
    """The number of the current generation; 0 if there is none that can be read."""
    try:
        return read_pointer(store).generation
    except JasperError:
        return 0


def print_publication(
    store: Path,
    generation: int,
    *,
    as_json: bool,
    published: bool = True,
    unused_note: str = "",
) -> None:
    """Print what was published as `generation`, after a warning if it looks like a mistake.

    If nothing was `published`, print why, and that the note is not used.
    """
    pointer, n_pairs = _pointer_and_pairs(store)
    entry = _entry(pointer, generation)
    warning = suspicion(shares(pointer.of(generation).lint, n_pairs))
    slots = changed_slots(store, pointer, generation) if published else None
    if as_json:
        notes = {"published": published, "unused_note": unused_note or None, "warning": warning}
        echo_json({**entry, "slots": slots_to_dict(slots), **notes})
        return
    if warning is not None:
        echo_warning(warning)
    if published:
        text = "; ".join((f" generation {generation}", *_counts(entry, n_pairs)))
        echo(verdict("published", "good"), text)
        if slots is not None:
            echo(short_form(slots))
        return
    unused = "; the note is not used" if unused_note else ""
    echo(
        verdict("not published", "doubtful"),
        f": generation {generation}, which is current, has these values already (--republish"
        f" publishes them again){unused}",
    )


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
    echo_table(_COLUMNS, [_row(entry, n_pairs) for entry in shown])
    there = [entry for entry in shown if entry["on_disk"]]
    echo(
        f"{_generations(len(shown))}, {len(shown) - len(there)} removed;"
        f" {size(sum(entry['bytes'] for entry in there))} on disk; current is {pointer.generation}"
    )


def _row(entry: dict[str, Any], n_pairs: int) -> tuple[str, ...]:
    rows, replaced = entry["rows"] or n_pairs, entry["changed_rows"]
    known = replaced is not None and replaced <= rows
    return (
        str(entry["generation"]),
        entry["when"][:19].replace("T", " "),
        _state(entry),
        size(entry["bytes"]),
        f"{rows - replaced:,}" if known else _UNKNOWN,
        f"{replaced:,}" if known else _UNKNOWN,
        entry["who"] or _UNKNOWN,
        _origin(entry),
        _unsuitable(entry, rows),
        _too_similar(entry[KEY]),
        entry["note"][:NOTE_LENGTH],
    )


def _state(entry: dict[str, Any]) -> str:
    if entry["in_force"]:
        return verdict("current", "good")
    return "on disk" if entry["on_disk"] else verdict("removed", "doubtful")


def _origin(entry: dict[str, Any]) -> str:
    """The files that a generation was made from, with the name of their folder."""
    if entry["files"] is None:
        return ", ".join(a.source for a in NEGATIVES) if entry["from_builder"] else _UNKNOWN
    if not entry["files"]:
        return "tensors"
    paths = [Path(file) for file in entry["files"]]
    together = len({path.parent for path in paths}) == 1
    return ", ".join([str(paths[0]), *(p.name if together else str(p) for p in paths[1:])])


def _unsuitable(entry: dict[str, Any], rows: int) -> str:
    counts = {name: entry[name] for name in _UNSUITABLE if name in entry}
    if not counts:
        return _UNKNOWN
    portions = {name: count / rows for name, count in counts.items()}
    text = ", ".join(
        f"{count:,} ({portions[name]:.1%}) {_UNSUITABLE[name]}"
        for name, count in counts.items()
        if count
    )
    if not text:
        return verdict("none", "good")
    return verdict(text, "doubtful") if suspicion(portions) else text


def _too_similar(lint: dict[str, float] | None) -> str:
    """The rows that the kept numbers of a lint say have a negative above the margin."""
    if lint is None or not lint.get("rows") or "margin_rows" not in lint:
        return ""
    return f"{lint['margin_rows']:,.0f} ({lint['margin_rows'] / lint['rows']:.1%}) rows"


def print_pruned(store: Path, pruned: Pruned, *, as_json: bool) -> None:
    """Print which generations were removed, and why the others stay."""
    if as_json:
        echo_json({"store": str(store.absolute()), **pruned.to_dict()})
        return
    gone = "would be removed" if pruned.dry_run else "removed"
    rows = [
        (
            str(one.generation),
            size(one.bytes),
            verdict(gone, "doubtful") if one.stays is None else f"stays: {one.stays}",
        )
        for one in pruned.generations
    ]
    columns = (
        Column("generation", right=True),
        Column("size", right=True),
        Column("what", wrap=True),
    )
    echo_table(columns, rows)
    count = len(pruned.removed)
    echo(
        f"{_generations(count)} {gone}, {size(pruned.freed_bytes)} freed;"
        f" {len(rows) - count} {'stays' if len(rows) - count == 1 else 'stay'}"
    )


def _generations(count: int) -> str:
    return f"{count} generation{'' if count == 1 else 's'}"


def _pointer_and_pairs(store: Path) -> tuple[Pointer, int]:
    manifest = read_manifest(store)
    return read_pointer(store), manifest.sizes["N_p"]


def _entry(pointer: Pointer, generation: int) -> dict[str, Any]:
    then = pointer.of(generation)
    more = next((e for e in pointer.history if e["generation"] == generation), {})
    return {
        "generation": then.generation,
        "when": then.when,
        "by": then.by,
        "who": more.get("who"),
        "note": then.note,
        "bytes": then.bytes,
        "changed_rows": then.changed_rows,
        "rows": more.get("rows"),
        "files": more.get("files"),
        "from_builder": bool(then.source),
        **then.lint,
        KEY: summary_in(more) or None,
    }


def _counts(entry: dict[str, Any], n_pairs: int) -> Iterator[str]:
    changed = entry["changed_rows"]
    if changed is not None:
        yield f"{changed} of {n_pairs} rows changed"
    portions = {name: entry[name] / n_pairs for name in MEANING if name in entry}
    yield from sentences(entry, portions)
