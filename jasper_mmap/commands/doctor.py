"""The command `jasper-mmap doctor`: whether this machine, and a store on it, are set up right."""

from __future__ import annotations

from pathlib import Path

import click

from ..console import PATH, debug_option, echo_json, json_option
from ..errors import JasperError


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
    from .answers.checks import print_checks

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
        print_checks(checks)
    if broken:
        names = ", ".join(check.id for check in broken)
        why = broken[0].seen.rstrip(".")
        raise JasperError(f"broken: {names}. {why}. Remedy: {broken[0].remedy}.")
