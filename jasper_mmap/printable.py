"""Text from files and file names, and sizes, fit for a terminal and for one line of a log.

Every error of the package is made fit when it is made (`errors`), every record of its log when it
is logged (here), and every other line where it is printed.
"""

from __future__ import annotations

import logging
from typing import Final

IN_ANSWER: Final = {"in_answer": True}
"""For `extra` of a log record: commands say it in their answer."""


def printable(text: str) -> str:
    r"""`text` with each character that is not printed as itself written as an escape, as `\n`.

    Such are control characters, line breaks, marks that turn the direction of writing, and the
    bytes of a file name that is not UTF-8.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def size(n_bytes: float) -> str:
    """A number of bytes as people read it."""
    for unit in ("B", "KiB", "MiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} GiB"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _log_printable(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    if not message.isprintable():
        record.msg, record.args = printable(message), None
    return True


logging.getLogger("jasper_mmap").addFilter(_log_printable)
