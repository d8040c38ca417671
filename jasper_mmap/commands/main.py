"""The command `jasper-mmap`: what there is to do with a converted store.

What a command needs of the package is imported when it is called: torch is not, for a help.
"""

from __future__ import annotations

from pathlib import Path

import click

from ..console import (
    Group,
    debug_option,
    echo_json,
    json_option,
    shown_progress,
    store_argument,
    version_option,
)
from ..errors import FormatError
from .bench import bench
from .negatives import generations, publish, rollback, watch


@click.group(cls=Group)
@version_option("jasper-mmap")
@debug_option
def command() -> None:
    """Verify and inspect converted stores, and publish hard negatives to them.

    DIR is always a folder that jasper-convert made.
    """


@command.command()
@store_argument
@click.option("--quick", is_flag=True, help="Only sizes, headers, shapes and index ranges.")
@click.option("--no-renew", is_flag=True, help="Leave the stamps of sound files as they are.")
@json_option()
@debug_option
def verify(store: Path, *, quick: bool, no_renew: bool, as_json: bool) -> None:
    """Recompute every checksum and check of a store.

    All problems are listed, each with its remedy, and any problem is a failure. Where files are
    sound but have another time than was stamped, as after a copy, the stamps are renewed, so that
    opening the store need not read those files again.
    """
    from ..negatives.renewal import verify_store
    from .answers import print_verification

    with shown_progress() as progress:
        report = verify_store(store, quick=quick, renew=not no_renew, progress=progress)
    if as_json:
        echo_json(report.to_dict())
    else:
        print_verification(report)
    if not report.ok:
        first = report.problems[0].message
        more = len(report.problems) - 1
        problems = "problem" if more == 1 else "problems"
        raise FormatError(f"{first} ({more} more {problems})" if more else first)


@command.command()
@store_argument
@json_option()
@debug_option
def inspect(store: Path, *, as_json: bool) -> None:
    """Show what a store holds.

    Artifacts with shapes, dtypes and sizes, splits, steering probabilities by epoch, clusters and
    tiers, the generation of hard negatives in force, and what was counted as worth a look.
    """
    from ..store.summary import summarise
    from .answers import print_summary

    summary = summarise(store)
    if as_json:
        echo_json(summary)
    else:
        print_summary(summary)


for _one in (bench, publish, rollback, generations, watch):
    command.add_command(_one)
