"""The command `jasper-mmap show`: one pair, question or source of a store.

It imports the rest of the package when it is called.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..console import (
    PATH,
    debug_option,
    echo_json,
    json_option,
    shown_progress,
    store_argument,
)
from ..rules.names import MARGIN

if TYPE_CHECKING:
    import torch

    from ..store.folder import Store
    from ..store.texts import Texts
    from .answers.rows import Row


@click.command()
@store_argument
@click.option("--pair", type=int, help="The number of a pair.")
@click.option("--question", type=int, help="The number of a question.")
@click.option("--source", type=int, help="The number of a source.")
@click.option(
    "--generation",
    type=click.IntRange(1),
    help="The generation of hard negatives to show.  [default: the current one]",
)
@click.option(
    "--texts",
    nargs=2,
    type=PATH,
    metavar="QUESTIONS SOURCES",
    help="Files with the texts: line i, for row i, is a JSON string or an object with 'text'."
    "  [default: the builder's inspection.json in DIR, if it fits]",
)
@json_option()
@debug_option
def show(
    store: Path,
    *,
    pair: int | None,
    question: int | None,
    source: int | None,
    generation: int | None,
    texts: tuple[Path, Path] | None,
    as_json: bool,
) -> None:
    """Show one pair, question or source.

    A pair with its negatives, their similarities and flags, and where its steering points; a
    question with its right sources, and which of them stand among its negatives; a source with the
    pairs for which it is right or a negative. Similarities are cosines. Numbers count from 0.
    """
    numbers = {"pair": pair, "question": question, "source": source}
    given = [name for name, number in numbers.items() if number is not None]
    if len(given) != 1:
        raise click.UsageError("Give one of --pair, --question and --source.")
    from ..store.folder import Store
    from .answers.rows import print_row

    opened = Store(store)
    pointer, content = opened.generation(generation)
    answer = _answer(opened, content.tables, given[0], numbers[given[0]] or 0)
    known = _texts(opened, texts, answer)
    if as_json:
        echo_json(
            {
                "store": str(opened.path),
                "generation": pointer.generation,
                **asdict(answer),
                "texts": {"questions": known.questions, "sources": known.sources},
                "notes": [known.note] if known.note else [],
            }
        )
        return
    print_row(answer, known, f"{opened.path}, generation {pointer.generation}")


def _answer(store: Store, tables: dict[str, torch.Tensor], kind: str, number: int) -> Row:
    from ..progress import Progress
    from ..similarity.single.pair import pair_of
    from ..similarity.single.question import question_of
    from ..similarity.single.source import source_of

    if kind == "pair":
        return pair_of(store, tables, number, MARGIN)
    if kind == "question":
        return question_of(store, tables, number)
    with shown_progress() as progress:
        return source_of(store, tables, number, Progress(progress))


def _texts(store: Store, paths: tuple[Path, Path] | None, row: Row) -> Texts:
    """The texts of what a row mentions, as far as they are known."""
    from ..store.texts import Texts, read_inspection, read_lines

    sizes = store.manifest.sizes
    if paths is None:
        known = read_inspection(store.path, sizes)
        return Texts(
            {n: text for n, text in known.questions.items() if n in row.questions},
            {n: text for n, text in known.sources.items() if n in row.sources},
            known.note,
        )
    questions, sources = paths
    return Texts(
        read_lines(questions, row.questions, sizes["N_q"], "question_embs"),
        read_lines(sources, row.sources, sizes["N_s"], "source_embs"),
    )
