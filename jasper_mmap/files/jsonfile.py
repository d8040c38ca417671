"""Untrusted JSON files, read within bounds of size, depth and digits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from ..errors import FormatError
from .regular_files import open_regular

MOST_BYTES: Final = 16 << 20
"""Limit of a JSON file. A manifest has about 10,000 bytes, a pointer with a full history 500,000.

In memory a file may take up to thirty times its size."""
MOST_DIGITS: Final = 300
"""Limit of an integer: a longer one cannot be compared with floats."""


def read_small(path: Path) -> bytes:
    """Return the content of a small regular file.

    Raises `FormatError` if it has more than `MOST_BYTES`, else as `open_regular`.
    """
    with open_regular(path) as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise FormatError(
            f"{path}: has more than {MOST_BYTES} bytes, too many for this file. Replace it with the"
            " correct file."
        )
    return data


def parsed(
    text: str | bytes,
    hook: Callable[[list[tuple[str, Any]]], Any] | None = None,
    *,
    most_digits: int = MOST_DIGITS,
) -> Any:
    """Return the value of a JSON text; `hook` as json's `object_pairs_hook`.

    Raises `ValueError`, also where Python would advise to raise one of its own limits.
    """

    def integer(number: str) -> int:
        digits = len(number.removeprefix("-"))
        if digits > most_digits:
            raise ValueError(f"an integer has {digits} digits, at most {most_digits} are allowed")
        return int(number)

    try:
        return json.loads(text, object_pairs_hook=hook, parse_int=integer)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
