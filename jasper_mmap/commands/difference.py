"""The command `jasper-mmap diff`: what changed between two generations of hard negatives.

It imports the rest of the package when it is called.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..console import (
    debug_option,
    echo,
    echo_json,
    echo_table,
    json_option,
    shown_progress,
    store_argument,
)
from ..rules.names import VARIANTS

if TYPE_CHECKING:
    import torch

    from ..similarity.change.difference import Difference
    from ..similarity.reports.report import Share
    from ..store.folder import Store


@click.command("diff")
@store_argument
@click.argument("sides", nargs=-1, metavar="[BEFORE] [AFTER]")
@json_option()
@debug_option
def diff(store: Path, sides: tuple[str, ...], *, as_json: bool) -> None:
    """Show what changed between two generations.

    BEFORE and AFTER are each the number of a generation, or a folder with files of hard negatives
    and tiers that are not published yet. One number is compared with the current generation, and
    the current generation with one folder; without either, the generation before the current one
    is compared with it.

    A slot is kept if its source was in the same tier of the row, moved if it was in another tier of
    the row, and replaced if it is new to the row. Similarities are cosines of question and
    negative. A margin false negative is nearer than 95 % of the question's lowest right source, and
    no known right source. The right source is nearest for a model that does nothing but add the
    steering to the question. Nothing is written into the store.
    """
    if len(sides) > 2:
        raise click.UsageError("Give at most two generations or folders.")
    from ..progress import Progress
    from ..similarity.change.difference import difference
    from ..store.folder import Store

    opened = Store(store)
    before, after = _sides(opened, sides)
    with shown_progress() as shown:
        result = difference(opened, before.tables, after.tables, Progress(shown))
    if as_json:
        sides_of = {"before": before.to_dict(), "after": after.to_dict()}
        echo_json({"store": str(opened.path), **sides_of, **result.to_dict()})
        return
    echo(f"{opened.path}: {before.name} -> {after.name}")
    _print(result, before.lint, after.lint)


@dataclass(frozen=True)
class _Side:
    """One of the two generations; `generation` is None for files that are not published."""

    name: str
    generation: int | None
    files: tuple[str, ...]
    tables: Mapping[str, torch.Tensor]
    lint: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        return {"generation": self.generation, "files": self.files, "lint": self.lint}


def _sides(store: Store, names: tuple[str, ...]) -> tuple[_Side, _Side]:
    sides = [_side(store, name) for name in names]
    if len(sides) == 2:
        return sides[0], sides[1]
    current = _generation(store, None)
    if sides and sides[0].generation is None:
        return current, sides[0]
    return (sides[0] if sides else _before(store)), current


def _side(store: Store, name: str) -> _Side:
    if name.isascii() and name.isdecimal():
        return _generation(store, int(name))
    from ..negatives.candidate import take_in
    from ..negatives.mined_folder import files_in

    files = files_in(name)
    candidate = take_in(store, *files, allow_equal=True, copies_in_store=False)
    folder = f"folder {files[0].parent}"
    return _Side(folder, None, tuple(map(str, files)), candidate.tables, candidate.lint)


def _generation(store: Store, number: int | None) -> _Side:
    pointer, content = store.generation(number)
    name = f"generation {pointer.generation}"
    return _Side(name, pointer.generation, (str(content.path),), content.tables, pointer.lint)


def _before(store: Store) -> _Side:
    """The generation before the current one."""
    from ..errors import MissingFileError
    from ..store.pointer import pointer_path, read_pointer

    pointer = read_pointer(store.path)
    older = [e["generation"] for e in pointer.history if e["generation"] != pointer.generation]
    if not older:
        raise MissingFileError(
            f"{pointer_path(store.path)}: generation {pointer.generation} is the first, so there is"
            " no older one to compare it with. Name the folder of files to compare."
        )
    return _generation(store, older[-1])


def _print(result: Difference, before: Mapping[str, int], after: Mapping[str, int]) -> None:
    from ..similarity.change.slots import share, short_form

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
    echo_table(("rows", "before", "after"), list(_measures(result, before, after)), (1, 2))
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
    from ..similarity.change.slots import share

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
    from ..similarity.change.slots import share

    return share(part.count, part.of) if part.of else "-"


def _value(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
