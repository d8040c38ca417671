"""The generations of a store over time, as its history tells them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ...similarity.reports.report import LintReport, Share
from ...similarity.reports.summary import summary, summary_in
from ...store.folder import Store
from ...store.pointer import generations_on_disk, read_pointer

MOST: Final = 100
"""The latest generations, which are shown."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One generation; what the history does not know is None."""

    generation: int
    current: bool
    on_disk: bool
    when: str
    by: str
    note: str
    changed: Share | None
    """Rows that differ from the generation before."""
    margin_false: Share | None
    """Rows with a negative that is too similar by the margin."""
    known_right: Share | None
    """Rows with a negative that is a known right source of the question."""


def generations_of(store: Store, lint: LintReport) -> tuple[Generation, ...]:
    """Return the latest 100 generations, ascending. `lint` is that of one of them: its numbers
    stand in for those that the history lacks."""
    pointer, there = read_pointer(store.path), generations_on_disk(store.path)
    n_pairs = store.manifest.sizes["N_p"]
    result = []
    for entry in pointer.history[-MOST:]:
        number, changed = entry["generation"], entry.get("changed_rows")
        numbers = summary_in(entry)
        if number == lint.generation:
            numbers = summary(lint.of_generation, lint.thresholds["margin"])
        result.append(
            Generation(
                generation=number,
                current=number == pointer.generation,
                on_disk=number in there,
                when=entry.get("when", ""),
                by=entry.get("by", ""),
                note=entry.get("note", ""),
                changed=None if changed is None else Share(changed, n_pairs),
                margin_false=_share(numbers, "margin_rows"),
                known_right=_share(numbers, "known_rows"),
            )
        )
    return tuple(result)


def _share(numbers: dict[str, float], name: str) -> Share | None:
    if name not in numbers or "rows" not in numbers:
        return None
    return Share(int(numbers[name]), int(numbers["rows"]))
