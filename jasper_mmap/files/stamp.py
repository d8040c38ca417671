"""The stamp of a file: it distinguishes states of the file without reading it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .atomic import storage_errors


@dataclass(frozen=True)
class Stamp:
    """Name, size and modification time of one state of a file."""

    name: str
    bytes: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path, *, of_link: bool = False) -> Stamp:
        """The stamp of the file at `path`; with `of_link`, of a link itself.

        Raises `MissingFileError` or another `StorageError`.
        """
        with storage_errors(path, "read"):
            status = path.stat(follow_symlinks=not of_link)
        return cls(path.name, status.st_size, status.st_mtime_ns)

    def to_dict(self) -> dict[str, Any]:
        """The form in manifests and pointers."""
        return asdict(self)
