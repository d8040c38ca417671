"""The content of an inbox: which names belong to pairs, and the state of a pair's files."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from ..errors import JasperError, MissingFileError, UsageError
from ..files.atomic import make_folder, own_folder, storage_errors
from ..files.stamp import Stamp
from ..printable import printable
from ..rules.schema import NEGATIVES
from .filing import Filing

FOLDER: Final = "inbox"
NAMES: Final = tuple(a.name for a in NEGATIVES)
_SUFFIXES: Final = (".pt", ".safetensors")

Stamps = tuple[Stamp, Stamp]


@dataclass(frozen=True)
class Place:
    """The folder of an inbox, and the patterns of the names of files of hard negatives in it."""

    folder: Path
    patterns: tuple[str, ...]
    given: bool
    """Given by the user, and so allowed to be a link."""

    @classmethod
    def of(cls, store: Path, given: str | None) -> Place:
        """The place of a folder or pattern `given`; if None, the store's `inbox`."""
        patterns = tuple(f"*{NAMES[0]}*{suffix}" for suffix in _SUFFIXES)
        if given is None:
            return cls(store.absolute() / FOLDER, patterns, given=False)
        path = Path(given).absolute()
        if path.is_dir():
            return cls(path, patterns, given=True)
        if NAMES[0] in path.name:
            path, patterns = path.parent, (path.name,)
        # A missing folder is created later, unless the name looks like files.
        like_files = path.suffix in _SUFFIXES or any(c in str(path) for c in "*?[")
        if not path.is_dir() and (path.exists() or like_files):
            raise UsageError(
                f"{given}: must be a folder, or a pattern with {NAMES[0]!r} in its last part (the"
                f" file of tiers has {NAMES[1]!r} there instead)."
            )
        return cls(path, patterns, given=True)

    def make(self) -> bool:
        """Create the folder if it is missing; return whether it was."""
        missing = not self.folder.is_dir()
        if not self.given:
            own_folder(self.folder)
        elif missing:
            with storage_errors(self.folder):
                make_folder(self.folder, parents=True)
        return missing

    def pair(self, name: str) -> Pair:
        """The pair of the file `name` and its file of tiers."""
        path = self.folder / name
        return Pair((path, path.with_name(name.replace(NAMES[0], NAMES[1]))))

    def names(self) -> list[str]:
        """The names of the present files of hard negatives, the oldest first."""
        dated = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if any(fnmatchcase(entry.name, pattern) for pattern in self.patterns):
                    try:
                        dated.append((entry.stat(follow_symlinks=False).st_mtime_ns, entry.name))
                    except FileNotFoundError:
                        continue
        return [name for _, name in sorted(dated)]


@dataclass
class Pair:
    """Two files of an inbox, and since when they have not changed."""

    paths: tuple[Path, Path]
    stamps: Stamps | None = None
    since_s: float = 0.0
    settled: Stamps | None = None
    """Their stamps when they were published or refused: they are not tried again, even if they
    could not be moved away."""
    filing: Filing | None = None
    """Where to move them then."""
    said: set[str] = field(default_factory=set)

    @property
    def name(self) -> str:
        """The name of the first file, printable."""
        return printable(self.paths[0].name)


def stamps_of(paths: tuple[Path, Path]) -> Stamps | None:
    """The current stamps of both files; None if one is missing."""
    try:
        return _stamp(paths[0]), _stamp(paths[1])
    except MissingFileError:
        return None


def _stamp(path: Path) -> Stamp:
    """The stamp of a link's target; if that cannot be read, of the link itself."""
    try:
        return Stamp.of(path)
    except JasperError:
        return Stamp.of(path, of_link=True)


def age_s(paths: tuple[Path, Path]) -> float:
    """Seconds since one of the files was last changed, by the system's clock."""
    return time.time() - max(path.lstat().st_ctime for path in paths)
