"""The command `jasper-mmap`: what there is to do with a converted store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ..console import Group, debug_option
from ..errors import FormatError
from ..negatives.renewal import verify_store
from ..store.summary import summarise
from ..version import __version__
from .bench import bench
from .negatives import COMMANDS
from .report import print_summary, print_verification

_STORE = click.argument("store", metavar="DIR", type=click.Path(path_type=Path, readable=False))
_JSON = click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit status: 0 done, 1 failed (stderr says why, a line a problem), 2 wrong usage, 130"
    " interrupted.",
)
@click.version_option(__version__, prog_name="jasper-mmap")
@debug_option
def command() -> None:
    """Verify and inspect converted stores, and publish hard negatives to them.

    DIR is always a folder that jasper-convert made.
    """


@command.command()
@_STORE
@click.option("--quick", is_flag=True, help="Only sizes, headers, shapes and index ranges.")
@click.option("--no-renew", is_flag=True, help="Leave the stamps of sound files as they are.")
@_JSON
@debug_option
def verify(store: Path, *, quick: bool, no_renew: bool, as_json: bool) -> None:
    """Recompute every checksum and check of the store in DIR.

    All problems are listed, each with its remedy, and any problem is a failure. Where files are
    sound but have another time than was stamped, as after a copy, the stamps are renewed, so that
    opening the store need not read those files again.
    """
    report = verify_store(store, quick=quick, renew=not no_renew)
    if as_json:
        _print_json(report.to_dict())
    else:
        print_verification(report)
    if not report.ok:
        first = report.problems[0].message
        more = len(report.problems) - 1
        problems = "problem" if more == 1 else "problems"
        raise FormatError(f"{first} ({more} more {problems})" if more else first)


@command.command()
@_STORE
@_JSON
@debug_option
def inspect(store: Path, *, as_json: bool) -> None:
    """Show what the store in DIR holds.

    Artifacts with shapes, dtypes and sizes, splits, steering probabilities by epoch, clusters and
    tiers, the generation of hard negatives in force, and what was counted as worth a look.
    """
    summary = summarise(store)
    if as_json:
        _print_json(summary)
    else:
        print_summary(summary)


command.add_command(bench)
for _about_negatives in COMMANDS:
    command.add_command(_about_negatives)


def _print_json(value: dict[str, Any]) -> None:
    click.echo(json.dumps(value, indent=2))
