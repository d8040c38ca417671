"""Two generations of negatives, or files that are not published yet, opened and compared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...console import echo, echo_table, shown_progress
from ...errors import MissingFileError
from ...negatives.candidate import Candidate, take_in
from ...negatives.mined_folder import files_in
from ...progress import Progress
from ...rules.names import VARIANTS
from ...similarity.change.difference import Difference, difference
from ...similarity.change.slots import share, short_form
from ...similarity.reports.report import Share
from ...store.folder import Store
from ...store.pointer import pointer_path, read_pointer


@dataclass(frozen=True)
class Side:
    """One of the two generations; `generation` is None for files that are not published."""

    name: str
    generation: int | None
    files: tuple[str, ...]
    tables: Mapping[str, torch.Tensor]
    lint: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {"generation": self.generation, "files": self.files, "lint": self.lint}


def sides_named(store: Store, names: tuple[str, ...]) -> tuple[Side, Side]:
    """The two generations that the arguments of `diff` name."""
    sides = [_side(store, name) for name in names]
    if len(sides) == 2:
        return sides[0], sides[1]
    current = published(store, None)
    if sides and sides[0].generation is None:
        return current, sides[0]
    return (sides[0] if sides else _before(store)), current


def _side(store: Store, name: str) -> Side:
    if name.isascii() and name.isdecimal():
        return published(store, int(name))
    return unpublished(store, files_in(name), allow_equal=True)


def unpublished(store: Store, files: tuple[Path, Path], *, allow_equal: bool) -> Side:
    """The content of two files of negatives and tiers, checked as for publishing."""
    return side_of(take_in(store, *files, allow_equal=allow_equal, copies_in_store=False))


def side_of(candidate: Candidate) -> Side:
    """A candidate that was read from files."""
    first, second = map(Path, candidate.files)
    together = first.parent == second.parent
    name = f"folder {first.parent}" if together else f"files {first}, {second}"
    return Side(name, None, candidate.files, candidate.tables, candidate.lint)


def published(store: Store, number: int | None) -> Side:
    """A generation; None is the current one."""
    pointer, content = store.generation(number)
    name = f"generation {pointer.generation}"
    return Side(name, pointer.generation, (str(content.path),), content.tables, pointer.lint)


def _before(store: Store) -> Side:
    """The generation before the current one."""
    pointer = read_pointer(store.path)
    older = [e["generation"] for e in pointer.history if e["generation"] != pointer.generation]
    if not older:
        raise MissingFileError(
            f"{pointer_path(store.path)}: generation {pointer.generation} is the first, so there is"
            " no older one to compare it with. Name the folder of files to compare."
        )
    return published(store, older[-1])


def compare(store: Store, before: Side, after: Side) -> Difference:
    """Compare the two, with progress on stderr."""
    with shown_progress() as shown:
        return difference(store, before.tables, after.tables, Progress(shown))


def comparison_to_dict(
    store: Store, before: Side, after: Side, result: Difference
) -> dict[str, Any]:
    """The JSON form of a comparison."""
    sides = {"before": before.to_dict(), "after": after.to_dict()}
    return {"store": str(store.path), **sides, **result.to_dict()}


def print_comparison(store: Store, before: Side, after: Side, result: Difference) -> None:
    """Print what changed from one side to the other."""
    echo(f"{store.path}: {before.name} -> {after.name}")
    echo(short_form(result.counts))
    same = result.unchanged_rows
    echo(f"{same:,} of {result.rows:,} rows unchanged ({share(same, result.rows)})")
    echo("")
    echo_table(
        ("tier", "slots", "kept", "moved", "replaced", "similarity", "margin false"),
        [
            (
                str(tier.tier),
                _change(f"{tier.slots_before:,}", f"{tier.slots_after:,}"),
                *(share(n, tier.slots_after) for n in (tier.kept, tier.moved, tier.replaced)),
                _change(_value(tier.similarity_before), _value(tier.similarity_after)),
                _change(_percent(tier.margin_false_before), _percent(tier.margin_false_after)),
            )
            for tier in result.tiers
        ],
        range(7),
        fold=True,
    )
    echo("similarity: the median; margin false: slots that are margin false negatives")
    echo("")
    measures = _measures(result, before.lint, after.lint)
    echo_table(("rows", "before", "after"), measures, (1, 2))
    if not result.changed_most:
        return
    echo("")
    echo("the rows that changed most:")
    echo_table(
        ("pair", "kept", "moved", "replaced", "mean similarity"),
        [
            (
                str(row.pair),
                *map(str, (row.kept, row.moved, row.replaced)),
                _change(_value(row.similarity_before), _value(row.similarity_after)),
            )
            for row in result.changed_most
        ],
        range(5),
    )


def _measures(
    result: Difference, before: Mapping[str, int], after: Mapping[str, int]
) -> Iterator[tuple[str, str, str]]:
    """What the lint says of the rows of both generations: a name, before and after."""
    counted = {"own_source_rows": "the pair's own source", "repeat_rows": "a source twice"}
    lints = result.lint_before, result.lint_after

    def row(name: str, shares: Iterable[Share]) -> tuple[str, str, str]:
        first, second = map(_percent, shares)
        return name, first, second

    yield row("with margin false negatives", (lint.margin_false.rows for lint in lints))
    yield row("with other right sources", (lint.known_right.rows for lint in lints))
    for name, meaning in counted.items():
        if name in before and name in after:
            first, second = (share(one[name], result.rows) for one in (before, after))
            yield f"with {meaning}", first, second
    yield row(
        "of train, with sources right for val/test only",
        (lint.evaluation_sources.rows for lint in lints),
    )
    for variant in VARIANTS:
        yield row(
            f"of train, right source nearest, {variant} steering",
            (lint.untrained["train"][variant].nearest for lint in lints),
        )


def _change(before: str, after: str) -> str:
    return before if before == after else f"{before} -> {after}"


def _percent(part: Share) -> str:
    return share(part.count, part.of) if part.of else "-"


def _value(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
