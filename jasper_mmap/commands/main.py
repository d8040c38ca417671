"""The command `jasper-mmap` for converted stores.

Each command imports what it needs when it is called, so help does not import torch.
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
from .difference import diff
from .doctor import doctor
from .lint import lint
from .negatives import generations, prune, publish, rollback, watch
from .report import report
from .show import show


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
@click.option("--no-renew", is_flag=True, help="Do not renew the stamps of sound files.")
@json_option()
@debug_option
def verify(store: Path, *, quick: bool, no_renew: bool, as_json: bool) -> None:
    """Recompute every checksum and check of a store.

    Lists all problems, each with its remedy, and fails if there is any. If the time of a sound file
    differs from its stamp, as after a copy, the stamp is renewed, so that opening the store does
    not check the file again.
    """
    from ..negatives.renewal import verify_store
    from .answers.store import print_verification

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
    """Show the content of a store.

    Artifacts with shapes, dtypes and sizes, splits, steering probabilities by epoch, clusters and
    tiers, the current generation of hard negatives, and warnings.
    """
    from ..store.summary import summarise
    from .answers.store import print_summary

    summary = summarise(store)
    if as_json:
        echo_json(summary)
    else:
        print_summary(summary)


command.add_section("Data", inspect, show, lint, report, verify)
command.add_section("Negatives", publish, diff, rollback, generations, prune, watch)
command.add_section("Machine", bench, doctor)
