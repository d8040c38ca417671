"""Suggestions for a path that does not exist: where the file or folder may be."""

from __future__ import annotations

import difflib
from itertools import islice
from pathlib import Path

from ..errors import MissingFileError
from .atomic import storage_errors

_MOST_NAMES = 1000
"""Limit of the names in a folder that are compared with a wrong one."""


def must_be_folder(folder: Path) -> None:
    """Raise `MissingFileError`, with a suggestion, unless `folder` is a folder."""
    with storage_errors(folder, "read"):
        if folder.is_dir():
            return
        is_file = folder.exists()
    what = f"Dataset directory not found: {folder}"
    if is_file:
        raise MissingFileError(
            f"{what} is a file. Name the folder that contains it: {folder.parent}"
        )
    raise MissingFileError(f"{what}{correction(folder, folder=True)}")


def correction(missing: Path, *, folder: bool = False) -> str:
    """The end of a message about a missing path: the nearest existing one, if any."""
    above = next(path for path in (*missing.parents, Path()) if path.is_dir())
    name = missing.relative_to(above).parts[0]
    inner = above / name != missing
    known = [p.name for p in entries_of(above) if p.is_dir() or not (folder or inner)]
    if close := difflib.get_close_matches(name, known, n=1):
        return f"; did you mean {above / close[0]}?"
    either = f" ({above / name} does not exist either)" if inner else ""
    return f"{either}. Correct the path."


def entries_of(folder: Path) -> list[Path]:
    """The entries of a folder, at most `_MOST_NAMES`; none if it cannot be read."""
    try:
        return list(islice(folder.iterdir(), _MOST_NAMES))
    except OSError:
        return []
