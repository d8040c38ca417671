"""The command `jasper-mmap diff`: what changed between two generations of hard negatives.

It imports the rest of the package when it is called.
"""

from __future__ import annotations

from pathlib import Path

import click

from ..console import debug_option, echo_json, json_option, store_argument


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
    from ..store.folder import Store
    from .answers.comparison import compare, comparison_to_dict, print_comparison, sides_named

    opened = Store(store)
    before, after = sides_named(opened, sides)
    result = compare(opened, before, after)
    if as_json:
        echo_json(comparison_to_dict(opened, before, after, result))
    else:
        print_comparison(opened, before, after, result)
