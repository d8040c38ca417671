"""The command `jasper-mmap report`: a store as one page of pictures.

It imports the rest of the package when it is called.
"""

from __future__ import annotations

from pathlib import Path

import click

from ..console import (
    PATH,
    debug_option,
    echo,
    echo_json,
    json_option,
    shown_progress,
    store_argument,
)
from ..rules.names import SEED


@click.command()
@store_argument
@click.option("-o", "--out", type=PATH, metavar="FILE", help="The page to write, e.g. report.html.")
@click.option(
    "--sample",
    type=click.IntRange(1),
    help="Draw this many pairs.  [default: all, of more than 500,000 pairs 200,000]",
)
@click.option("--seed", type=int, default=SEED, show_default=True, help="Of the sample.")
@json_option("Print the numbers as JSON; -o is optional then.")
@debug_option
def report(store: Path, *, out: Path | None, sample: int | None, seed: int, as_json: bool) -> None:
    """Draw a store as one page.

    A self-contained HTML file with what the store is, what is most worth mending in it, and
    pictures of its splits, similarities, steering, clusters and generations, each with its numbers.
    It needs no network and no script to be read. A page that this command wrote before is replaced;
    any other file is not. The lint is kept in negatives/ for the next call. Drawing needs the extra
    'report' (matplotlib, Jinja2).
    """
    if out is None and not as_json:
        raise click.UsageError("Give -o FILE, or --json.")
    from ..printable import size
    from ..report.numbers.content import content_of
    from ..report.whole_page import check_target, write_page

    if out is not None:
        check_target(out, store)
    with shown_progress() as progress:
        content = content_of(store, sample=sample, seed=seed, progress=progress)
    written = None if out is None else write_page(content, out)
    if as_json:
        echo_json(content.to_dict())
    elif written is not None:
        echo(f"{out}: {size(written)}")
