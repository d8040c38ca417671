"""JSON files from anywhere, read within bounds of size, depth and digits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from ..errors import FormatError
from .regular_files import open_regular

MOST_BYTES: Final = 16 << 20
"""Of a JSON file. A manifest has some ten thousand, a pointer with all its history half a million.

In memory one may take up to thirty times as much."""
MOST_DIGITS: Final = 300
"""Of a whole number: a longer one cannot be compared with floats."""


def read_small(path: Path) -> bytes:
    """The whole of a small regular file.

    Raises `FormatError` where it has more than `MOST_BYTES`, else as `open_regular`.
    """
    with open_regular(path) as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise FormatError(
            f"{path}: has more than {MOST_BYTES} bytes, so it is not the small file that belongs"
            " there. Put the proper file in its place."
        )
    return data


def parsed(
    text: str | bytes,
    hook: Callable[[list[tuple[str, Any]]], Any] | None = None,
    *,
    most_digits: int = MOST_DIGITS,
) -> Any:
    """The value of a JSON text; `hook` as json's `object_pairs_hook`.

    Raises `ValueError` in words of its own also where Python's would give Python's advice.
    """

    def integer(number: str) -> int:
        digits = len(number.removeprefix("-"))
        if digits > most_digits:
            raise ValueError(f"a whole number has {digits} digits, at most {most_digits} are read")
        return int(number)

    try:
        return json.loads(text, object_pairs_hook=hook, parse_int=integer)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
