"""The command `jasper-mmap doctor`: whether this machine, and a store on it, are set up right."""

from __future__ import annotations

import shutil
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from ..console import PATH, debug_option, echo, echo_json, json_option
from ..errors import JasperError
from ..printable import printable

if TYPE_CHECKING:  # nothing is imported for help
    from ..doctor.check import Check

_NARROW, _WIDTH = 40, 80
_HEADER: Final = ("check", "state", "what was found, and the remedy")


@click.command()
@click.argument("store", metavar="[DIR]", type=PATH, required=False)
@json_option()
@debug_option
def doctor(store: Path | None, *, as_json: bool) -> None:
    """Check this machine, and a store on it.

    Each check is ok, warn, or broken: then training cannot run or would be wrong, and the exit
    status is 1. At most 64 MB of the store are read, and it is left as it was. Without DIR, only
    the machine is checked.
    """
    from ..doctor.examine import examine
    from ..doctor.gather import gather

    checks = list(examine(gather(store)))
    broken = [check for check in checks if check.state == "broken"]
    if as_json:
        echo_json(
            {
                "store": None if store is None else str(store),
                "broken": len(broken),
                "checks": [check.to_dict() for check in checks],
            }
        )
    else:
        _print(checks)
    if broken:
        names = ", ".join(check.id for check in broken)
        why = broken[0].seen.rstrip(".")
        raise JasperError(f"broken: {names}. {why}. Remedy: {broken[0].remedy}.")


def _print(checks: list[Check]) -> None:
    """Print a table that fits the terminal, or 80 columns: its last column is wrapped."""
    columns = shutil.get_terminal_size((_WIDTH, 0)).columns if sys.stdout.isatty() else _WIDTH
    first = max(len(check.id) for check in checks)
    indent = first + len("  broken  ")
    width = max(columns - indent, _NARROW)

    def row(id_: str, state: str, texts: list[str]) -> None:
        lines = [part for text in texts for part in textwrap.wrap(printable(text), width)]
        for number, line in enumerate(lines):
            head = f"{id_:{first}}  {state:6}  " if number == 0 else " " * indent
            echo(f"{head}{line}")

    row(*_HEADER[:2], [_HEADER[2]])
    for check in checks:
        remedy = [f"-> {check.remedy}"] if check.remedy else []
        row(check.id, check.state, [check.seen, *remedy])
