"""Escaping of untrusted text for terminals and logs, and readable sizes.

Errors of the package are escaped when they are created (`errors`), log records when they are logged
(here), and other lines when they are printed.
"""

from __future__ import annotations

import logging
from typing import Final

IN_ANSWER: Final = {"in_answer": True}
"""For `extra` of a log record whose message a command prints in its answer."""


def printable(text: str) -> str:
    r"""Return `text` with each unprintable character written as an escape, like `\n`.

    These are control characters, line breaks, marks of writing direction, and bytes of a file name
    that is not UTF-8.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def size(n_bytes: float) -> str:
    """A number of bytes in readable units."""
    for unit in ("B", "KiB", "MiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} GiB"


def size_of(done: int, total: int) -> str:
    """A number of bytes of a total, both in the unit of the total and always of the same length."""
    whole, unit = size(total).split(" ")
    factor = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}[unit]
    part = f"{done / factor:.{0 if unit == 'B' else 1}f}"
    return f"{part.rjust(len(whole))} of {whole} {unit}"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _log_printable(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    if not message.isprintable():
        record.msg, record.args = printable(message), None
    return True


logging.getLogger("jasper_mmap").addFilter(_log_printable)
