"""What to say of a path that does not exist: where the file or folder may be."""

from __future__ import annotations

import difflib
from itertools import islice
from pathlib import Path

from ..errors import MissingFileError
from .atomic import storage_errors

_MOST_NAMES = 1000
"""Of a folder in which a name is looked for that is like a wrong one."""


def must_be_folder(folder: Path) -> None:
    """Raise `MissingFileError`, which says where it may be, unless the folder is there."""
    with storage_errors(folder, "read"):
        if folder.is_dir():
            return
        is_file = folder.exists()
    what = f"Dataset directory not found: {folder}"
    if is_file:
        raise MissingFileError(f"{what} is a file. Name the folder that it is in: {folder.parent}")
    raise MissingFileError(f"{what}{correction(folder, folder=True)}")


def correction(missing: Path, *, folder: bool = False) -> str:
    """The end of a message about a path that does not exist: the nearest one that does, if any."""
    above = next(path for path in (*missing.parents, Path()) if path.is_dir())
    name = missing.relative_to(above).parts[0]
    inner = above / name != missing
    known = [p.name for p in entries_of(above) if p.is_dir() or not (folder or inner)]
    if close := difflib.get_close_matches(name, known, n=1):
        return f"; did you mean {above / close[0]}?"
    either = f" (there is no {above / name} either)" if inner else ""
    return f"{either}. Correct the path."


def entries_of(folder: Path) -> list[Path]:
    """What lies in a folder, some of it where that is much; nothing where it cannot be read."""
    try:
        return list(islice(folder.iterdir(), _MOST_NAMES))
    except OSError:
        return []
