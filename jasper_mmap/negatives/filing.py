"""Where the pairs of an inbox go once they are handled: `done/` and `failed/`."""

from __future__ import annotations

import hashlib
import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..files import atomic
from ..files.locks import now
from ..printable import printable

DONE: Final = "done"
FAILED: Final = "failed"

_MARKED: Final = re.compile(r"(\d{6,}|\d{4}-\d\d-\d\dT\d{6}\.\d{3})-.+", re.DOTALL)
"""Names of files that were moved there from an inbox: they start with a generation or a time."""
_NAME_BYTES: Final = 200
"""Limit, below the usual 255: temporary names of the reason's file are longer."""
_DAY_S: Final = 86400.0


@dataclass(frozen=True)
class Filing:
    """Where to move a pair, the prefix of its names there, and the reason."""

    folder: str
    mark: str
    reason: str | None = None
    """Written beside each file."""

    @classmethod
    def done(cls, generation: int) -> Filing:
        """For a pair that was published as `generation`."""
        return cls(DONE, f"{generation:06d}")

    @classmethod
    def failed(cls, reason: str) -> Filing:
        """For a pair that was refused for `reason`, prefixed by the current time."""
        return cls(FAILED, now().replace(":", "").replace("+0000", ""), reason)

    def move(self, paths: tuple[Path, Path]) -> None:
        """Move both files into the folder, or neither.

        Raises `OSError` or a `JasperError`.
        """
        folder = paths[0].parent / self.folder
        atomic.own_folder(folder)
        targets = [folder / _shortened(f"{self.mark}-{path.name}") for path in paths]
        if self.reason is not None:
            text = "".join(f"{printable(line)}\n" for line in self.reason.splitlines())
            for target in targets:
                with atomic.replacing(target.with_name(f"{target.stem}.reason.txt")) as file:
                    atomic.write_all(file, text.encode())
        _rename_all(list(zip(paths, targets, strict=True)))
        for target in targets:
            with suppress(OSError):  # `remove_expired` counts from the move
                os.utime(target, follow_symlinks=False)


def _rename_all(pairs: list[tuple[Path, Path]]) -> None:
    for done, (path, target) in enumerate(pairs):
        try:
            atomic.rename(path, target)
        except OSError:
            for moved, put in pairs[:done]:
                atomic.rename(put, moved)
            raise


def _shortened(name: str) -> str:
    whole = os.fsencode(name)
    if len(whole) <= _NAME_BYTES:
        return name
    digest = hashlib.sha256(whole).hexdigest()[:16].encode()
    half = (_NAME_BYTES - len(digest) - 2) // 2
    return os.fsdecode(b"~".join((whole[:half], digest, whole[-half:])))


def remove_expired(inbox: Path, keep_days: float) -> list[Path]:
    """Remove files that were moved to `done/` and `failed/` over `keep_days` ago; return them."""
    removed = []
    until = time.time() - keep_days * _DAY_S
    for folder in (inbox / DONE, inbox / FAILED):
        atomic.refuse_link(folder)
        if not folder.is_dir():
            continue
        for path in sorted(folder.iterdir()):
            if not _MARKED.fullmatch(path.name) or (path.is_dir() and not path.is_symlink()):
                continue  # the user's own file
            with suppress(FileNotFoundError):
                if path.lstat().st_mtime <= until:
                    atomic.remove(path)
                    removed.append(path)
    return removed
