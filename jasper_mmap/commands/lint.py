"""The command lint: what the similarities of questions, right sources and negatives show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..console import (
    PATH,
    FiniteRange,
    debug_option,
    echo_json,
    json_option,
    shown_progress,
    store_argument,
)
from ..rules.names import MARGIN, SEED


@click.command()
@store_argument
@click.option(
    "--generation", type=click.IntRange(1), help="Its number.  [default: the current one]"
)
@click.option(
    "--margin",
    type=FiniteRange(0, 1),
    default=MARGIN,
    show_default=True,
    help="A negative is too similar above p - margin * |p|, p being the right source's cosine.",
)
@click.option("--sample", type=click.IntRange(1), help="Draw this many pairs.  [default: all]")
@click.option("--seed", type=int, default=SEED, show_default=True, help="Of the sample.")
@click.option(
    "--near-duplicates",
    is_flag=True,
    help="Also look for rows that are almost equal: the time is quadratic.",
)
@click.option(
    "--out", type=PATH, help="Write similarities and flags of all negatives to this file."
)
@json_option()
@debug_option
def lint(store: Path, as_json: bool, **options: Any) -> None:
    """Show how similar the negatives are.

    By tier and split, with what may be wrong: negatives that may be right sources, weak right
    sources, tiers that are not what they say, duplicates. Nothing is refused, and nothing changes
    but what is kept in negatives/ for the next call. --out FILE.safetensors has the tensors
    similarities, margin_false, margin_false_own and known_right [pairs, negatives].
    """
    from ..negatives.lint import lint_negatives
    from .answers.lint import print_lint

    with shown_progress() as progress:
        report = lint_negatives(store, progress=progress, **options)
    if as_json:
        echo_json(report.to_dict())
    else:
        print_lint(report)
