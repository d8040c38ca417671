"""The checks of `jasper-mmap doctor` as a table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ...console import Column, Meaning, echo_table, verdict
from ...doctor.check import Check

_MEANS: Final[dict[str, Meaning]] = {"ok": "good", "warn": "doubtful", "broken": "bad"}
_COLUMNS: Final = (
    Column("check"),
    Column("state"),
    Column("what was found, and the remedy", wrap=True),
)


def print_checks(checks: Iterable[Check]) -> None:
    """Print a row for each check."""
    rows = [
        (
            check.id,
            verdict(check.state, _MEANS[check.state]),
            f"{check.seen} -> {check.remedy}" if check.remedy else check.seen,
        )
        for check in checks
    ]
    echo_table(_COLUMNS, rows)
