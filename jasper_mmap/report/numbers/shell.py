"""Command lines to copy, safe whatever is in a path."""

from __future__ import annotations

import os
import shlex


def command(*words: str | int | os.PathLike[str]) -> str:
    r"""Return the line that a shell (bash, zsh) reads as these words.

    It is printable: a word with control characters, marks of writing direction or bytes that are
    not UTF-8 is written as `$'a\x1bb'`.
    """
    return " ".join(_quoted(os.fspath(w) if isinstance(w, os.PathLike) else str(w)) for w in words)


def _quoted(word: str) -> str:
    if word.isprintable():
        return shlex.quote(word)
    return "$'" + "".join(map(_escaped, word)) + "'"


def _escaped(character: str) -> str:
    if character in "\\'":
        return f"\\{character}"
    if character.isprintable():
        return character
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))
